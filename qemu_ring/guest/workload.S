/*
 * The workload firmware: 64 KiB, given to QEMU with -bios.
 *
 * Reset vector -> 32 bit -> long mode -> ring 3, where it stays.  It writes
 * one 8-byte token per chosen guest page and counts what it wrote.  Almost
 * everything runs in ring 3, because some KVM hosts emulate ring 0 and run
 * only ring 3 natively; IOPL 3 gives ring 3 the I/O ports.  There is no
 * stack, no interrupt and no exception handler: nothing here needs one.
 *
 * The layout of the parameter and statistics pages is mirrored by layout.py.
 * Build: see build.py (as, objcopy; there is no relocation, so no linking).
 */
        .intel_syntax noprefix

        /* Addresses in guest memory. */
        .set ROM_BASE,     0xffff0000
        .set CONTROL,      0x2000       /* parameters, one page */
        .set STATISTICS,   0x4000       /* one page a vCPU, MAX_VCPUS of them */
        .set DMA_REQUEST,  0x3000       /* fw_cfg DMA descriptor, then the file directory */
        .set FW_CFG_DIR,   0x88000      /* directory, until the tables are read over it */
        .set TABLES,       0x88000      /* Zipf tables, u32 each */
        .set TABLES_SIZE,  0x4000
        .set PML4,         0x40000
        .set PDPT,         0x41000
        .set PD,           0x42000      /* MAP_GIB page directories of 2 MiB pages */
        .set MAP_GIB,      64
        .set MAX_VCPUS,    32

        /* The control page. */
        .set C_MAGIC,      0x00
        .set C_VERSION,    0x04
        .set C_VCPUS,      0x08
        .set C_REGIONS,    0x0c
        .set C_SEQUENCE,   0x10         /* odd while the host changes the streams */
        .set C_REGION,     0x40         /* {u64 address, u64 pages} */
        .set C_STREAM,     0x100        /* 64 bytes a vCPU */
        .set C_ACK,        0xf00        /* u64 a vCPU: sequence number in use */
        .set MAGIC,        0x4c575251   /* "QRWL" */
        .set VERSION,      1

        /* A stream. */
        .set S_PATTERN,    0
        .set S_FLAGS,      4
        .set S_INTERVAL,   8            /* TSC ticks from write to write, 0 unthrottled;
                                           PCI: from a cycle's end to the next one */
        .set S_SEED,       16
        .set S_FIRST,      24           /* page index over all regions laid end to end */
        .set S_COUNT,      32
        .set S_HOT_FIRST,  40           /* Zipf: index of its table */
        .set S_HOT_COUNT,  48           /* Zipf: buckets in its table */
        .set S_HOT_RUN,    56           /* Zipf: u64 multiplier that scatters ranks */
        .set S_COLD_RUN,   60
        .set S_COMMANDS,   40           /* PCI: S_COUNT times u32, what 0xcf8 takes */
        .set P_IDLE,       0
        .set P_ONCE,       1
        .set P_LOOP,       2
        .set P_RANDOM,     3
        .set P_ZIPF,       4
        .set P_HOT_COLD,   5
        .set P_PCI_TOGGLE, 6
        .set F_COLD_ONCE,  1

        /* A statistics page. */
        .set T_STATE,      0x00
        .set T_WRITES,     0x08
        .set T_PASSES,     0x10
        .set T_START_TSC,  0x18
        .set T_FIRST_TSC,  0x20
        .set T_CURSOR,     0x28
        .set T_LAST_PAGE,  0x30
        .set T_REGION,     0x40         /* u64 writes a region */
        .set STATE_RUNNING,  1
        .set STATE_DONE,     2          /* a sequential-once stream came to its end */
        .set STATE_IDLE,     3
        .set STATE_BAD_PARAMETERS, 0xbad

        .text
start:
        /* ---- 16 bit: BSP from the reset vector, APs from the SIPI stub ---- */
        .code16
entry16:
        cli
        .byte   0x66                    /* a 32-bit base */
        lgdt    cs:[gdt_pointer - start]
        mov     eax, 0x00000011         /* PE, ET; caches on */
        mov     cr0, eax
        .byte   0x66, 0xea              /* jmp far 08:entry32 */
        .long   ROM_BASE + (entry32 - start)
        .word   0x08

        /* ---- 32 bit: the least that long mode needs ---- */
        .code32
entry32:
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     ecx, 0x1b               /* IA32_APIC_BASE: bit 8 is set on the BSP */
        rdmsr
        test    eax, 0x100
        jz      enter_long_mode         /* APs use the tables that the BSP made */

        /* Only what ring 3 needs to stand on: the first 2 MiB and the ROM.
           Ring 3 fills in the rest, at native speed. */
        mov     edi, PDPT
        mov     eax, PD + 0x27
        mov     ecx, MAP_GIB
1:      mov     dword ptr [edi], eax
        mov     dword ptr [edi + 4], 0
        add     edi, 8
        add     eax, 0x1000
        dec     ecx
        jnz     1b
        mov     dword ptr [PML4], PDPT + 0x27
        mov     dword ptr [PML4 + 4], 0
        mov     dword ptr [PD], 0xe7
        mov     dword ptr [PD + 4], 0
        mov     dword ptr [PD + 3 * 0x1000 + 511 * 8], 0xffe000e7
        mov     dword ptr [PD + 3 * 0x1000 + 511 * 8 + 4], 0

enter_long_mode:
        mov     eax, 0x20               /* PAE */
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xc0000080         /* EFER.LME */
        xor     edx, edx
        mov     eax, 0x100
        wrmsr
        mov     eax, 0x80000011         /* PG, ET, PE */
        mov     cr0, eax
        .byte   0xea                    /* jmp far 18:entry64 */
        .long   ROM_BASE + (entry64 - start)
        .word   0x18

        .code64
entry64:
        mov     eax, 1                  /* here, because ring 3 may see the host's CPUID */
        cpuid
        shr     ebx, 24                 /* initial APIC id = vCPU index */
        lea     rsp, [rip + iret_frame]
        iretq

        /* ---- ring 3 from here on ---- */
ring3:
        mov     r15d, CONTROL
        mov     esi, ebx                /* esi: vCPU index */
        shl     ebx, 12
        add     ebx, STATISTICS         /* rbx: statistics page */
        cmp     esi, MAX_VCPUS
        jae     halt
        test    esi, esi
        jnz     worker

        /* BSP: page directories for MAP_GIB GiB, identity mapped. */
        mov     edi, PD
        mov     eax, 0xe7
        mov     ecx, MAP_GIB * 512
1:      mov     [rdi], rax
        add     rax, 0x200000
        add     rdi, 8
        dec     ecx
        jnz     1b

        /* fw_cfg: number of files, then the directory. */
        mov     eax, 0x00190000 + 0x0a  /* select 0x19, read */
        mov     ecx, 4
        mov     edi, FW_CFG_DIR
        .macro  fw_cfg_dma
        bswap   eax
        mov     [DMA_REQUEST], eax
        mov     eax, ecx
        bswap   eax
        mov     [DMA_REQUEST + 4], eax
        mov     dword ptr [DMA_REQUEST + 8], 0
        mov     eax, edi
        bswap   eax
        mov     [DMA_REQUEST + 12], eax
        mov     dx, 0x514
        xor     eax, eax
        out     dx, eax
        mov     eax, DMA_REQUEST
        bswap   eax
        mov     dx, 0x518
        out     dx, eax
        .endm
        fw_cfg_dma
        mov     ebp, [FW_CFG_DIR]
        bswap   ebp                     /* ebp: files */
        mov     ecx, ebp
        cmp     ecx, TABLES_SIZE / 64
        ja      bad_parameters
        shl     ecx, 6
        mov     edi, FW_CFG_DIR
        mov     eax, 0x02               /* read on, same item */
        fw_cfg_dma

        /* Remember selectors and sizes: reading the tables overwrites the
           directory.  r8d/r9d: parameters, r10d/r11d: tables. */
        xor     r8d, r8d
        xor     r10d, r10d
        mov     r12d, FW_CFG_DIR
next_file:
        test    ebp, ebp
        jz      files_done
        lea     rdi, [r12 + 8]
        lea     rsi, [rip + name_parameters]
        mov     ecx, name_parameters_end - name_parameters
        repe cmpsb
        jne     1f
        movzx   r8d, word ptr [r12 + 4]
        mov     r9d, [r12]
1:      lea     rdi, [r12 + 8]
        lea     rsi, [rip + name_tables]
        mov     ecx, name_tables_end - name_tables
        repe cmpsb
        jne     2f
        movzx   r10d, word ptr [r12 + 4]
        mov     r11d, [r12]
2:      add     r12, 64
        dec     ebp
        jmp     next_file
files_done:
        test    r8d, r8d
        jz      bad_parameters
        bswap   r8d                     /* selector ends up in the upper half */
        mov     eax, r8d
        or      eax, 0x0a
        bswap   r9d
        mov     ecx, r9d
        cmp     ecx, 0xf00              /* the acknowledgements are ours */
        ja      bad_parameters
        mov     edi, CONTROL
        fw_cfg_dma
        test    r10d, r10d
        jz      1f
        bswap   r10d
        mov     eax, r10d
        or      eax, 0x0a
        bswap   r11d
        mov     ecx, r11d
        cmp     ecx, TABLES_SIZE
        ja      bad_parameters
        mov     edi, TABLES
        fw_cfg_dma
1:
        cmp     dword ptr [r15 + C_MAGIC], MAGIC
        jne     bad_parameters
        cmp     dword ptr [r15 + C_VERSION], VERSION
        jne     bad_parameters

        lea     rsi, [rip + banner]
        mov     ecx, banner_end - banner
        mov     dx, 0x3f8
        rep outsb

        /* Start the other vCPUs: INIT to all but self, then SIPI until each runs.  One
           is not enough: under TCG it is lost if it comes before INIT was taken. */
        xor     esi, esi
        mov     r8d, [r15 + C_VCPUS]
        cmp     r8d, 1
        jbe     worker
        cmp     r8d, MAX_VCPUS
        ja      bad_parameters
        mov     ecx, r8d
        mov     edi, STATISTICS + T_START_TSC
1:      mov     qword ptr [rdi], 0      /* a reset leaves it as it was */
        add     edi, 0x1000
        dec     ecx
        jnz     1b
        mov     r10d, 0xfee00000
        or      dword ptr [r10 + 0xf0], 0x100
        mov     dword ptr [r10 + 0x300], 0x000c4500
send_sipi:
        mov     dword ptr [r10 + 0x300], 0x000c4600 + ((0xf0000 + (ap_stub - start)) >> 12)
        rdtsc
        mov     r9d, eax
1:      mov     ecx, r8d
2:      dec     ecx
        jz      worker
        mov     edi, ecx
        shl     edi, 12
        cmp     qword ptr [rdi + STATISTICS + T_START_TSC], 0
        jne     2b
        pause
        rdtsc
        sub     eax, r9d
        cmp     eax, 1 << 21            /* about a millisecond */
        jb      1b
        jmp     send_sipi

bad_parameters:
        mov     qword ptr [rbx + T_STATE], STATE_BAD_PARAMETERS
        lea     rsi, [rip + complaint]
        mov     ecx, complaint_end - complaint
        mov     dx, 0x3f8
        rep outsb
halt:   pause
        jmp     halt

        /* ---- the writer, one per vCPU ----
           rbx statistics    rbp stream       r15 control page
           r14 sequence      r13 writes       r12 cursor of the walk
           r11 next deadline r10 random state r9  cursor of the hot set
           r8  left in this hot or cold run   esi 1 while in a hot run */
worker:
        mov     ebp, esi
        shl     ebp, 6
        add     ebp, CONTROL + C_STREAM
        mov     edi, ebx                /* statistics start from zero, also after a reset */
        xor     eax, eax
        mov     ecx, 512
        rep stosq
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        mov     [rbx + T_START_TSC], rax
        xor     r13d, r13d

        /* The host wrote the control page behind KVM's back.  This write, after
           it, is what makes the page dirty and the migrated copy right. */
        .macro  acknowledge             /* uses rcx */
        mov     ecx, ebx
        sub     ecx, STATISTICS
        shr     ecx, 9
        mov     [r15 + rcx + C_ACK], r14
        .endm

reload:
        mov     r14d, [r15 + C_SEQUENCE]
        test    r14d, 1
        jz      2f
        acknowledge                     /* touch no stream until the host is done */
1:      pause
        cmp     r14d, [r15 + C_SEQUENCE]
        je      1b
        jmp     reload
2:      xor     r12d, r12d
        xor     r9d, r9d
        mov     r8d, [rbp + S_HOT_RUN]
        mov     esi, 1
        mov     r10, [rbp + S_SEED]
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        mov     r11, rax
        mov     [rbx + T_CURSOR], r12
        mov     eax, STATE_RUNNING
        mov     ecx, STATE_IDLE
        cmp     dword ptr [rbp + S_PATTERN], P_IDLE
        cmove   eax, ecx
        mov     [rbx + T_STATE], rax
        acknowledge

again:
        cmp     r14d, [r15 + C_SEQUENCE]
        jne     reload
        mov     edi, [rbp + S_PATTERN]
        test    edi, edi
        jz      rest
        mov     rcx, [rbp + S_INTERVAL]
        test    rcx, rcx
        jz      choose
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        cmp     rax, r11
        jb      rest
        add     r11, rcx
        shl     rcx, 6                  /* more than 64 late: do not catch up in a burst */
        add     rcx, r11
        cmp     rcx, rax
        cmovb   r11, rax

choose:
        cmp     edi, P_LOOP
        je      loop_walk
        jb      once
        cmp     edi, P_ZIPF
        je      zipf
        jb      random
        cmp     edi, P_HOT_COLD
        je      hot_cold
        cmp     edi, P_PCI_TOGGLE
        je      pci_toggle
        mov     qword ptr [rbx + T_STATE], STATE_BAD_PARAMETERS
rest:   pause
        jmp     again

once:
        cmp     r12, [rbp + S_COUNT]
        jae     rest                    /* T_STATE says done */
loop_walk:
        mov     rax, r12
        inc     r12
        jmp     write_from_first

        .macro  next_random             /* xorshift64*, to rax; uses rdx */
        mov     rax, r10
        shr     rax, 12
        xor     r10, rax
        mov     rax, r10
        shl     rax, 25
        xor     r10, rax
        mov     rax, r10
        shr     rax, 27
        xor     r10, rax
        movabs  rax, 0x2545f4914f6cdd1d
        imul    rax, r10
        .endm

random:
        next_random
        mul     qword ptr [rbp + S_COUNT]
        mov     rax, rdx
        jmp     write_from_first

zipf:   /* A bucket, each as likely as the next; then a rank within it. */
        next_random
        mul     qword ptr [rbp + S_HOT_COUNT]
        mov     rdi, rdx
        add     rdi, [rbp + S_HOT_FIRST]
        mov     ecx, [rdi * 4 + TABLES]
        mov     edi, [rdi * 4 + TABLES + 4]
        sub     edi, ecx
        next_random
        mul     rdi
        lea     rax, [rdx + rcx]
        mul     qword ptr [rbp + S_HOT_RUN]
        div     qword ptr [rbp + S_COUNT]
        mov     rax, rdx
        jmp     write_from_first

hot_cold:
        test    r8d, r8d
        jnz     1f
        xor     esi, 1                  /* the run is over: change over */
        mov     r8d, [rbp + S_COLD_RUN]
        test    esi, esi
        cmovnz  r8d, dword ptr [rbp + S_HOT_RUN]
        test    r8d, r8d
        jz      again                   /* the host never gives two empty runs */
1:      test    esi, esi
        jnz     hot
        cmp     r12, [rbp + S_COUNT]
        jae     cold_is_over
        dec     r8d
        mov     rax, r12
        inc     r12
        jmp     write_from_first
cold_is_over:
        mov     r8d, [rbp + S_HOT_RUN]
        mov     esi, 1
        test    r8d, r8d
        jnz     hot
        mov     qword ptr [rbx + T_STATE], STATE_DONE
        jmp     rest
hot:    dec     r8d
        mov     rax, r9
        add     rax, [rbp + S_HOT_FIRST]
        inc     r9
        cmp     r9, [rbp + S_HOT_COUNT]
        jb      write_page
        xor     r9d, r9d
        jmp     write_page

        /* One cycle: memory-enable of each device off, then of each on.  The sequence
           number is not looked at within, so new streams find all devices on. */
pci_toggle:
        xor     edi, edi                /* what COMMAND gets */
1:      xor     ecx, ecx
2:      mov     eax, [rbp + rcx * 4 + S_COMMANDS]
        mov     dx, 0xcf8
        out     dx, eax
        mov     eax, edi
        mov     dx, 0xcfc
        out     dx, ax
        inc     ecx
        cmp     ecx, [rbp + S_COUNT]
        jb      2b
        xor     edi, 2                  /* memory-enable */
        jnz     1b
        inc     qword ptr [rbx + T_PASSES]
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        add     rax, [rbp + S_INTERVAL]
        mov     r11, rax
        jmp     again

write_from_first:
        add     rax, [rbp + S_FIRST]
write_page:
        mov     [rbx + T_LAST_PAGE], rax
        xor     edx, edx
        lea     rdi, [r15 + C_REGION]
1:      cmp     rax, [rdi + 8]
        jb      2f
        sub     rax, [rdi + 8]
        add     rdi, 16
        inc     edx
        cmp     edx, [r15 + C_REGIONS]
        jb      1b
        mov     qword ptr [rbx + T_STATE], STATE_BAD_PARAMETERS
        jmp     rest
2:      shl     rax, 12
        add     rax, [rdi]
        inc     r13
        mov     rcx, rbx                /* token: vCPU in the top byte, then the count */
        sub     rcx, STATISTICS
        shl     rcx, 44
        or      rcx, r13
        mov     [rax], rcx
        inc     qword ptr [rbx + T_REGION + rdx * 8]
        mov     [rbx + T_WRITES], r13
        cmp     r13, 1
        jne     3f
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        mov     [rbx + T_FIRST_TSC], rax

        /* A walk's end is told only now that its last page is written. */
3:      cmp     r12, [rbp + S_COUNT]
        jae     walk_end
        mov     [rbx + T_CURSOR], r12
        jmp     again
walk_end:
        cmp     r12, [rbx + T_CURSOR]
        je      again                   /* it was told before: this was a hot write */
        mov     [rbx + T_CURSOR], r12
        inc     qword ptr [rbx + T_PASSES]
        mov     edi, [rbp + S_PATTERN]
        cmp     edi, P_ONCE
        je      walk_is_done
        cmp     edi, P_HOT_COLD
        jne     walk_again
        test    dword ptr [rbp + S_FLAGS], F_COLD_ONCE
        jnz     again
walk_again:
        xor     r12d, r12d
        mov     [rbx + T_CURSOR], r12
        jmp     again
walk_is_done:
        mov     qword ptr [rbx + T_STATE], STATE_DONE
        jmp     again

        /* ---- data ---- */
name_parameters:
        .asciz  "opt/qemu-ring/parameters"
name_parameters_end:
name_tables:
        .asciz  "opt/qemu-ring/tables"
name_tables_end:
banner: .ascii  "qemu-ring workload: running\r\n"
banner_end:
complaint:
        .ascii  "qemu-ring workload: bad parameters\r\n"
complaint_end:

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* 08: 32-bit code, ring 0 */
        .quad   0x00cf93000000ffff      /* 10: data, ring 0 */
        .quad   0x00af9b000000ffff      /* 18: 64-bit code, ring 0 */
        .quad   0x00cff3000000ffff      /* 20: data, ring 3 */
        .quad   0x00affb000000ffff      /* 28: 64-bit code, ring 3 */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   ROM_BASE + (gdt - start)

        .balign 8
iret_frame:
        .quad   ROM_BASE + (ring3 - start)
        .quad   0x2b                    /* CS */
        .quad   0x3002                  /* RFLAGS: IOPL 3, interrupts off */
        .quad   0                       /* RSP: there is no stack */
        .quad   0x23                    /* SS */

        /* APs: SIPI vector 0xff, so CS:IP = ff00:0000 = this. */
        .org    0xf000
        .code16
ap_stub:
        .byte   0xea                    /* jmp far f000:entry16 */
        .word   entry16 - start
        .word   0xf000

        .org    0xfff0
        .byte   0xe9                    /* jmp near entry16 */
        .word   (entry16 - start) - 0xfff3
        .org    0x10000
