/*
 * Between QEMU and the kernel: answers that a test needs and this kernel does
 * not give.  Preloaded into QEMU; what a file of a name is there for, in the
 * directory $SHIM, happens for as long as it is there.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define DIRTY_LOG_RING_WITH_BITMAP 225
#define SET_USER_MEMORY_REGION2 _IOC(_IOC_WRITE, KVMIO, 0x49, 160)
#define SLOTS 4096

static int told(const char *name)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", getenv("SHIM"), name);
    return syscall(SYS_access, path, F_OK) == 0;
}

/*
 * KVM_RESET_DIRTY_RINGS that fails, at times or always, or stops early; or that
 * comes some time after the entries were collected, while the guest goes on
 */
static int reset_rings(int fd)
{
    static int calls, owed;
    int result;

    if (told("fail-reset") || (told("flaky-reset") && ++calls % 3 == 0)) {
        errno = EINVAL;
        return -1;
    }
    if (told("late-reset")) {
        usleep(200000);
    }
    result = syscall(SYS_ioctl, fd, KVM_RESET_DIRTY_RINGS, 0);
    if (result >= 0 && (told("partial-reset") || owed)) {
        owed += result;
        result = (owed + 1) / 2;
        owed -= result;
    }
    return result;
}

/*
 * A memslot that is to be made read-only, which KVM has no memory for; and one
 * that is removed some time after it was harvested, while the guest goes on
 */
static int set_region(int fd, unsigned long number, void *argument)
{
    static struct kvm_userspace_memory_region last[SLOTS];
    struct kvm_userspace_memory_region *region = argument;
    struct kvm_userspace_memory_region *before = &last[region->slot % SLOTS];
    int made_read_only = region->memory_size && region->flags & KVM_MEM_READONLY &&
                         !(before->flags & KVM_MEM_READONLY) &&
                         region->memory_size == before->memory_size &&
                         region->guest_phys_addr == before->guest_phys_addr;

    if (region->memory_size) {
        *before = *region;
    } else if (told("late-removal")) {
        usleep(5000);
    }
    if (made_read_only && told("fail-readonly")) {
        errno = ENOMEM;
        return -1;
    }
    return syscall(SYS_ioctl, fd, number, argument);
}

/* A bitmap behind the ring, in which nothing is ever set */
static int with_bitmap(unsigned request, void *argument, int *result)
{
    static uint64_t pages[SLOTS];
    struct kvm_userspace_memory_region *region = argument;
    struct kvm_dirty_log *log = argument;

    *result = 0;
    switch (request) {
    case KVM_CHECK_EXTENSION:
        *result = 1;
        return (long)argument == DIRTY_LOG_RING_WITH_BITMAP;
    case KVM_ENABLE_CAP:
        return ((struct kvm_enable_cap *)argument)->cap == DIRTY_LOG_RING_WITH_BITMAP;
    case KVM_SET_USER_MEMORY_REGION:
    case SET_USER_MEMORY_REGION2:
        if (region->memory_size) {
            pages[region->slot % SLOTS] = region->memory_size / 4096;
        }
        return 0;
    case KVM_GET_DIRTY_LOG:
        memset(log->dirty_bitmap, 0, (pages[log->slot % SLOTS] + 63) / 64 * 8);
        return 1;
    default:
        return 0;
    }
}

int ioctl(int fd, unsigned long number, ...)
{
    unsigned request = number;
    va_list arguments;
    void *argument;
    int result;

    va_start(arguments, number);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (_IOC_TYPE(request) == KVMIO) {
        if (request == KVM_RESET_DIRTY_RINGS) {
            return reset_rings(fd);
        }
        if (request == KVM_GET_DIRTY_LOG && told("fail-log")) {
            errno = EIO;
            return -1;
        }
        if (request == KVM_SET_CPUID2 && told("keep-cpuid")) {
            /* Some kernels refuse it to a vCPU that has run, even if nothing changes */
            syscall(SYS_ioctl, fd, number, argument);
            return 0;
        }
        if (request == KVM_SET_USER_MEMORY_REGION || request == SET_USER_MEMORY_REGION2) {
            if (!told("ring-with-bitmap")) {
                return set_region(fd, number, argument);
            }
        }
        if (told("ring-with-bitmap") && with_bitmap(request, argument, &result)) {
            return result;
        }
    }
    return syscall(SYS_ioctl, fd, number, argument);
}

int uname(struct utsname *host)
{
    int result = syscall(SYS_uname, host);

    if (told("old-kernel")) {
        strcpy(host->release, "5.15.0-generic");
    }
    return result;
}

/* /sys/module is the directory "module"; what nobody may read there, QEMU may not */
static const char *elsewhere(const char *path, char buffer[4096])
{
    struct stat status;

    if (strncmp(path, "/sys/module", 11) || !told("other-modules")) {
        return path;
    }
    snprintf(buffer, 4096, "%s/%s", getenv("SHIM"), path + 5);
    if (stat(buffer, &status) == 0 && !(status.st_mode & 0444)) {
        errno = EACCES;
        return NULL;
    }
    return buffer;
}

int access(const char *path, int mode)
{
    char buffer[4096];
    const char *real = elsewhere(path, buffer);

    return real ? syscall(SYS_access, real, mode) : -1;
}

int open64(const char *path, int flags, ...)
{
    char buffer[4096];
    const char *real = elsewhere(path, buffer);
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, unsigned);
    va_end(arguments);
    return real ? syscall(SYS_openat, AT_FDCWD, real, flags, mode) : -1;
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));
