/*
 * A firmware that writes to memory in ring 0: 64 KiB, given to QEMU with -bios.
 *
 * It writes to one page after the other, over and over, and counts its passes.
 * Some KVM hosts emulate ring 0, and may not look in between whether a vCPU's
 * dirty ring is full.  There is no stack, no interrupt and no exception
 * handler: nothing here needs one.
 *
 * The addresses are mirrored by image.py.
 */
        .intel_syntax noprefix

        .set ROM_BASE,  0xffff0000
        .set PASSES,    0x2000          /* u32 */
        .set FIRST,     0x100000
        .set PAGES,     4096

        .text
start:
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

        .code32
entry32:
        mov     eax, 0x10
        mov     ds, eax
pass:
        mov     edi, FIRST
        mov     ecx, PAGES
1:      inc     dword ptr [edi]
        add     edi, 0x1000
        dec     ecx
        jnz     1b
        inc     dword ptr [PASSES]
        jmp     pass

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* 08: code, 4 GiB */
        .quad   0x00cf93000000ffff      /* 10: data, 4 GiB */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   ROM_BASE + (gdt - start)

        .org    0xfff0
        .code16
        .byte   0xe9                    /* jmp entry16 */
        .word   entry16 - (. + 2)
        .org    0x10000
