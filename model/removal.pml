/*
 * Removal of a KVM memslot that logs dirty pages, while the guest migrates.
 *
 * One page of guest RAM, mapped by one memslot in each address space.  A store makes it differ from
 * the destination's copy, until the migration thread sends it.  If it differs at the end, a dirty
 * bit was lost.  One page is enough: nothing in KVM or QEMU makes what happens to a page's
 * bit depend on another page, except a full ring, which stops the vCPU and loses nothing.
 *
 * README.md says which line of Linux and of the patches each step stands for.  Choose by -D:
 *
 *   RING, or BITMAP             how dirty pages are tracked
 *   MANUAL                      BITMAP only: KVM_DIRTY_LOG_MANUAL_PROTECT and INITIALLY_SET
 *   PML                         the CPU logs dirty pages in a buffer of its own
 *   POLICY=BEST_EFFORT, QUIESCE, READ_ONLY, TOMBSTONE
 *   NAS=2                       a second address space (SMM) maps the same page
 *   VCPUS, WRITES               how many vCPUs, and stores by each
 *   ABSORB                      reaps publish at once, and sending a page absorbs its dirty bit
 *   PUBLISH_FIRST               ABSORB in the wrong order: publish, then reset
 *   NO_LATE_WRITES              no store after the removal has begun: what is lost was in a CPU's log
 *   SECOND_LOOKUP               the fast page fault marks by a second look-up (Linux 5.15)
 *   BARRIER                     a memslot is added only when each vCPU has left KVM_RUN since
 *                               the last removal
 *   ID_FREED_EARLY              TOMBSTONE without the tombstone: the id is free before the last reap
 */

#define BEST_EFFORT 0
#define QUIESCE     1
#define READ_ONLY   2
#define TOMBSTONE   3

#ifndef POLICY
#define POLICY QUIESCE
#endif
#ifndef NAS
#define NAS 1
#endif
#ifndef VCPUS
#define VCPUS 2
#endif
#ifndef WRITES
#define WRITES 1
#endif
#ifndef SYNCS
#define SYNCS 1         /* besides the last one */
#endif
#define IDS 2           /* slot ids: a slot is added again with its old id, or another */
#define NONE 9

/* KVM: a memslot, for each address space */
#define ABSENT   0
#define VALID    1
#define INVALID  2      /* being deleted: keeps id and KVM_MEM_LOG_DIRTY_PAGES */
#define RDONLY   3
byte kslot[NAS], kid[NAS];
bool klog[NAS];         /* the read-only slot of bitmap mode does not log */
bool kbm[NAS];          /* its dirty bitmap's bit for the page */

/* KVM: the page's SPTE, for each address space */
#define UNMAPPED 0
#define CLEAN    1      /* write-protected, or with PML: the D bit is clear */
#define DIRTY    2      /* the next store tells nobody */
#define FIXED    3      /* read-only for good, not for dirty logging: of a read-only memslot */
byte spte[NAS];

/* vCPUs */
bool in_run[VCPUS];                     /* within ioctl(KVM_RUN) */
bool inside[VCPUS];                     /* has been since the last memslot was removed */
bool in_guest[VCPUS], flushing[VCPUS];  /* a remote TLB flush waits for it to leave the guest */
bool in_srcu[VCPUS], syncing[VCPUS];    /* reads kvm->srcu; synchronize_srcu() waits for its end */
bool stale[VCPUS];                      /* the SPTEs were zapped while it handles a fault */
byte tlb[VCPUS];                        /* address space whose DIRTY translation is cached; NONE */
byte pml[VCPUS];                        /* address space whose page is in the log; NONE */
byte writes_left[VCPUS];
chan ring0 = [6] of { byte, byte };     /* address space, slot id */
chan ring1 = [6] of { byte, byte };

/* QEMU */
bool qslot[NAS];        /* it has the memslot, or a tombstone */
byte qid[NAS];
bool qbm[NAS];          /* KVMSlot.dirty_bmap */
bool published;         /* DIRTY_MEMORY_MIGRATION */
bool to_send;           /* RAMBlock.bmap */
bool inhibit, stop, stopped, removing;
bool bql, slots_lock;   /* held */

/* The destination's copy of the page is not the page */
bool differs;


#define lock(l)   atomic { !l -> l = true }
#define unlock(l) l = false

/* ---------------------------------------------------------------- KVM, as called by QEMU */

#if VCPUS > 1
#define each_vcpu(to, from) to[0] = from[0]; to[1] = from[1]
#define no_vcpu(which) (!which[0] && !which[1])
#else
#define each_vcpu(to, from) to[0] = from[0]
#define no_vcpu(which) (!which[0])
#endif

/* Each vCPU that is in the guest has to leave it once.  Callers hold the slots lock. */
inline flush_tlbs() {
    d_step { each_vcpu(flushing, in_guest) }
    no_vcpu(flushing)
}

inline synchronize_srcu() {
    d_step { each_vcpu(syncing, in_srcu) }
    no_vcpu(syncing)
}

/* KVM_SET_USER_MEMORY_REGION with size 0 */
inline kvm_delete(as) {
    kslot[as] = INVALID;
    synchronize_srcu();
    d_step { spte[as] = UNMAPPED; each_vcpu(stale, in_srcu) }
    flush_tlbs();
    kslot[as] = ABSENT;
    synchronize_srcu();
    kbm[as] = false
}

/* The same, that creates */
inline kvm_create(as, new_id, state, logs) {
    d_step {
        kid[as] = new_id;
        klog[as] = logs;
#ifdef MANUAL
        kbm[as] = logs;         /* KVM_DIRTY_LOG_INITIALLY_SET */
#else
        kbm[as] = false;
#endif
        kslot[as] = state
    }
    synchronize_srcu()
}

inline write_protect(as) {
    d_step { if :: spte[as] == DIRTY -> spte[as] = CLEAN :: else fi }
    flush_tlbs()
}

/* ---------------------------------------------------------------- QEMU's harvest */

inline publish() {
    d_step {
        a = 0;
        do
        :: a < NAS -> if :: qslot[a] && qbm[a] -> published = true; qbm[a] = false :: else fi; a++
        :: else -> break
        od;
        a = 0
    }
}

#ifdef RING
inline mark_page(from_as, from_id) {
    if
    :: qslot[from_as] && qid[from_as] == from_id -> qbm[from_as] = true
    :: else         /* dropped, or another slot's bit set */
    fi
}

/* kvm_dirty_ring_reap_locked(), with the slots lock held */
inline reap() {
    /* collect: what a vCPU pushes meanwhile may be taken or left */
    do
    :: ring0?a,k -> mark_page(a, k); collected[a * IDS + k] = true
    :: ring1?a,k -> mark_page(a, k); collected[a * IDS + k] = true
    :: empty(ring0) && empty(ring1) -> break
    od;
#ifdef PUBLISH_FIRST
    publish();
#endif
    /* KVM_RESET_DIRTY_RINGS */
    a = 0;
    do
    :: a < NAS ->
        d_step {
            k = kid[a] % IDS;
            if
            :: kslot[a] != ABSENT && collected[a * IDS + k] && spte[a] == DIRTY ->
                spte[a] = CLEAN
            :: else
            fi;
            collected[a * IDS] = false;
            collected[a * IDS + 1] = false
        }
        a++
    :: else -> break
    od;
    a = 0; k = 0;
    flush_tlbs();
#if defined(ABSORB) && !defined(PUBLISH_FIRST)
    publish();
#endif
}
#define collect_from(as) reap()
#else
/* KVM_GET_DIRTY_LOG of one memslot, with the slots lock held */
inline get_dirty_log(as) {
#ifdef MANUAL
    qbm[as] = qbm[as] | kbm[as]
#else
    d_step {
        qbm[as] = qbm[as] | kbm[as];
        if :: kbm[as] && spte[as] == DIRTY -> spte[as] = CLEAN :: else fi;
        kbm[as] = false
    }
    flush_tlbs()
#endif
}
#define collect_from(as) get_dirty_log(as)
#endif

/* ---------------------------------------------------------------- the vCPUs */

inline push(who, in_as, id) {
#ifdef RING
    if
    :: who == 0 -> assert(nfull(ring0)); ring0!in_as,id
    :: else -> assert(nfull(ring1)); ring1!in_as,id
    fi
#else
    kbm[in_as] = true
#endif
}

/* Out of the guest; what the CPU has logged is looked up in the memslots of now */
inline leave_guest() {
    d_step { in_guest[v] = false; flushing[v] = false; tlb[v] = NONE }
    in_srcu[v] = true;
#ifdef PML
    if
    :: pml[v] != NONE ->
        atomic {
            state = kslot[pml[v]]; slot_id = kid[pml[v]];
            if :: !klog[pml[v]] -> state = ABSENT :: else fi
        }
        if
        :: state != ABSENT -> push(v, pml[v], slot_id)
        :: else         /* forgotten */
        fi;
        d_step { pml[v] = NONE; state = 0; slot_id = 0 }
    :: else
    fi;
#endif
}

#ifdef NO_LATE_WRITES
#define may_store (!removing)
#else
#define may_store true
#endif

proctype vcpu(byte v) {
    byte as, state, slot_id;
    bool store, present;    /* a fault by a store; the page was mapped */

    do
    :: writes_left[v] == 0 -> break
    :: stop -> break
    :: atomic { writes_left[v] > 0 && !inhibit && !stop -> in_run[v] = true }
again:
        /* into the guest, in one address space or the other (SMM) */
        if
        :: true -> as = 0
#if NAS > 1
        :: true -> as = 1
#endif
        fi;
        atomic { in_guest[v] = true; store = false }
        do
        :: atomic {
            writes_left[v] > 0 && may_store && (spte[as] == DIRTY || tlb[v] == as) ->
            tlb[v] = as; differs = true; writes_left[v]-- }
#ifdef PML
        :: atomic {
            writes_left[v] > 0 && may_store && spte[as] == CLEAN && pml[v] == NONE ->
            spte[as] = DIRTY; pml[v] = as; tlb[v] = as; differs = true; writes_left[v]-- }
        :: writes_left[v] > 0 && spte[as] == UNMAPPED && tlb[v] != as ->
            store = true; present = false; break
#else
        :: writes_left[v] > 0 && spte[as] != DIRTY && tlb[v] != as ->
            store = true; present = (spte[as] != UNMAPPED); break
#endif
        :: store = false; break         /* an interrupt, a kick */
        od;
        leave_guest();

        if
        :: store ->
            d_step { state = kslot[as]; slot_id = kid[as]; stale[v] = false }
            if
#ifndef PML
            /* Fast page fault: it looks at the SPTE only, not whether the memslot is being deleted */
            :: atomic { present && spte[as] == CLEAN -> spte[as] = DIRTY }
#ifdef SECOND_LOOKUP
                d_step { state = kslot[as]; slot_id = kid[as] }
#endif
                if :: state != ABSENT -> push(v, as, slot_id) :: else fi
#endif
            :: atomic { state == VALID && !stale[v] ->              /* under mmu_lock */
                push(v, as, slot_id); spte[as] = DIRTY }
            :: atomic { state == VALID && !stale[v] && spte[as] == UNMAPPED ->
                spte[as] = CLEAN }                                  /* a read of the page */
            :: atomic { state == RDONLY && !stale[v] && spte[as] == UNMAPPED ->
                spte[as] = FIXED }                                  /* the same */
            :: state == VALID && stale[v]                           /* again */
            :: state != VALID   /* MMIO, or again: QEMU has the new FlatView, no RAM is written */
            fi
        :: else
        fi;
        d_step { in_srcu[v] = false; syncing[v] = false; stale[v] = false;
                 state = 0; slot_id = 0; as = 0; store = false; present = false }

        if
        :: goto again
        :: d_step { in_run[v] = false; inside[v] = false }
        fi
    od
}

/* ---------------------------------------------------------------- the main thread */

inline hold() {
    inhibit = true;
    no_vcpu(in_run);
}

/* kvm_memslot_remove() */
inline remove(as) {
#if POLICY == BEST_EFFORT
    collect_from(as);
    d_step { if :: qbm[as] -> published = true; qbm[as] = false :: else fi }
    kvm_delete(as);
    qslot[as] = false
#elif POLICY == QUIESCE
    hold();
    collect_from(as);
    kvm_delete(as);
    inhibit = false;
    d_step { if :: qbm[as] -> published = true; qbm[as] = false :: else fi; qslot[as] = false }
#elif POLICY == READ_ONLY
    hold();
#ifdef BITMAP
    get_dirty_log(as);
#endif
    kvm_delete(as);
#ifdef BITMAP
    kvm_create(as, qid[as], RDONLY, false);
#else
    kvm_create(as, qid[as], RDONLY, true);
#endif
    inhibit = false;
#ifdef RING
    reap();
#endif
    kvm_delete(as);
    d_step { if :: qbm[as] -> published = true; qbm[as] = false :: else fi; qslot[as] = false }
#elif POLICY == TOMBSTONE
    kvm_delete(as);
#ifdef ID_FREED_EARLY
    qslot[as] = false;
#endif
    reap();
    d_step { if :: qbm[as] -> published = true; qbm[as] = false :: else fi; qslot[as] = false }
#endif
}

proctype main_thread() {
    byte a, k, as;
    bool collected[NAS * IDS];

    lock(bql); lock(slots_lock);
    removing = true;
    remove(0);
    unlock(slots_lock);
    d_step { each_vcpu(inside, in_run) }
#if NAS > 1
    lock(slots_lock);       /* the other address space's listener commits next */
    remove(1);
    unlock(slots_lock);
#endif
    unlock(bql);

    if
    :: true     /* it stays away */
    :: lock(bql); lock(slots_lock);
#ifdef RING
        if
        :: reap()       /* a second memslot is removed in between */
        :: true
        fi;
#endif
#ifdef BARRIER
        no_vcpu(inside);
#endif
        as = 0;
        do
        :: as < NAS ->
            if
            :: true     /* with its id */
            :: qid[as] = 1 - qid[as]
            fi;
            kvm_create(as, qid[as], VALID, true);
            d_step { qslot[as] = true; qbm[as] = false }
            as++
        :: else -> break
        od;
        unlock(slots_lock); unlock(bql);
        removing = false
    fi;

    stop = true;
    no_vcpu(in_run);
    stopped = true
}

#ifdef ABSORB
/* The reaper, or a vCPU that has filled its ring */
proctype reaper() {
    byte a, k;
    bool collected[NAS * IDS];

    lock(slots_lock);
    reap();
    unlock(slots_lock)
}
#endif

/* ---------------------------------------------------------------- the migration thread */

inline sync_and_send() {
    lock(bql); lock(slots_lock);
#ifdef RING
    reap();
#else
    m = 0;
    do
    :: m < NAS -> if :: qslot[m] -> get_dirty_log(m) :: else fi; m++
    :: else -> m = 0; break
    od;
#endif
    publish();
    unlock(slots_lock); unlock(bql);
    atomic { if :: published -> to_send = true; published = false :: else fi }
    if
    :: to_send ->
#ifdef MANUAL
        lock(slots_lock);       /* KVM_CLEAR_DIRTY_LOG */
        m = 0;
        do
        :: m < NAS ->
            if
            :: qslot[m] && kslot[m] == VALID ->
                d_step { kbm[m] = false; if :: spte[m] == DIRTY -> spte[m] = CLEAN :: else fi }
                flush_tlbs()
            :: else
            fi;
            m++
        :: else -> m = 0; break
        od;
        unlock(slots_lock);
#endif
        to_send = false;
#ifdef ABSORB
        published = false;
#endif
        differs = false
    :: else
    fi
}

proctype migration() {
    byte a, k, m, syncs;
    bool collected[NAS * IDS];

    do
    :: syncs < SYNCS && !stop -> syncs++; sync_and_send()
    :: stopped -> break
    od;
    sync_and_send();
    assert(!differs)
}

init {
    byte i;

    atomic {
        i = 0;
        do
        :: i < NAS ->
            kslot[i] = VALID; klog[i] = true; kid[i] = 0; spte[i] = CLEAN;
            qslot[i] = true; qid[i] = 0; i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < VCPUS -> tlb[i] = NONE; pml[i] = NONE; writes_left[i] = WRITES; i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < VCPUS -> run vcpu(i); i++
        :: else -> break
        od;
        run main_thread();
        run migration();
#ifdef ABSORB
        run reaper();
#endif
    }
}
