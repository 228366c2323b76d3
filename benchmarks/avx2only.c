/* Loaded into a program: the processor has AVX2 and nothing newer, as far as CPUID tells.
 *
 * AWS Lambda promises no more on x86-64, so this is the row that its users get. The handler of a
 * signal executes the instruction and clears the bits of AVX-512, VNNI, AMX, AVX10 and 16-bit
 * floats. Bits are those of the Intel manual, volume 2, CPUID, leaves 7, 0x19, 0x1d, 0x1e, 0x24.
 *
 * As LD_PRELOAD, every CPUID faults (arch_prctl(2), ARCH_SET_CPUID), where the processor can do
 * that. What the loader asked before is not hidden: libc's memcpy may use wider registers. With
 * PERSEID_AVX2_PROBE set it only says by its exit status whether the processor can.
 *
 * As LD_AUDIT (rtld-audit(7)), for other processors, the CPUID instructions of some libraries are
 * replaced by INT3 and NOP after a library was mapped and before any of its code runs. The variable
 * PERSEID_AVX2_AT names a file with one of them a line: library, address in it.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012

static const unsigned char cpuid[] = {0x0f, 0xa2}, trap[] = {0xcc, 0x90};
static struct sigaction former;
static int faulting;

static long let_cpuid(int through) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, through); }

static unsigned without(unsigned value, const unsigned char *bits, int count) {
    for (int i = 0; i < count; i++)
        value &= ~(1u << bits[i]);
    return value;
}

static const unsigned char ebx7[] = {16, 17, 21, 26, 27, 28, 30, 31}; /* AVX-512 F DQ IFMA PF ER CD BW VL */
static const unsigned char ecx7[] = {1, 6, 11, 12, 14};               /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
static const unsigned char edx7[] = {2, 3, 8, 22, 23, 24, 25};        /* 4VNNIW 4FMAPS VP2INTERSECT AMX FP16 */
static const unsigned char eax71[] = {4, 5, 21, 23};                  /* AVX-VNNI BF16 AMX-FP16 AVX-IFMA */
static const unsigned char edx71[] = {4, 5, 10, 19};                  /* AVX-VNNI-INT8 -NE-CONVERT -INT16 AVX10 */
#define WITHOUT(value, bits) value = without(value, bits, sizeof bits)

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *reg = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)reg[REG_RIP] - !faulting; /* INT3 is past */
    if (at == NULL || memcmp(at, faulting ? cpuid : trap, 2)) { /* another: it comes again, unhandled */
        sigaction(number, &former, NULL);
        return;
    }
    unsigned leaf = (unsigned)reg[REG_RAX], sub = (unsigned)reg[REG_RCX];
    unsigned a = leaf, b = 0, c = sub, d = 0;
    if (faulting)
        let_cpuid(1);
    __asm__ volatile("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
    if (faulting)
        let_cpuid(0);
    if (leaf == 7 && sub == 0) {
        WITHOUT(b, ebx7);
        WITHOUT(c, ecx7);
        WITHOUT(d, edx7);
    } else if (leaf == 7 && sub == 1) {
        WITHOUT(a, eax71);
        WITHOUT(d, edx71);
    } else if (leaf == 0x19 || leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
        a = b = c = d = 0;
    }
    reg[REG_RAX] = a;
    reg[REG_RBX] = b;
    reg[REG_RCX] = c;
    reg[REG_RDX] = d;
    reg[REG_RIP] = (greg_t)(at + 2);
}

static void handle(int signal) {
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(signal, &ours, &former);
}

__attribute__((constructor)) static void begin(void) {
    if (getenv("PERSEID_AVX2_AT"))
        return;
    faulting = 1;
    handle(SIGSEGV);
    long refused = let_cpuid(0);
    if (getenv("PERSEID_AVX2_PROBE"))
        _exit(refused ? 1 : 0);
    if (refused)
        abort();
}

unsigned la_version(unsigned version) {
    handle(SIGTRAP);
    return version;
}

static void replace(unsigned char *at) {
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *page = (unsigned char *)((size_t)at & -size);
    size_t length = (size_t)(at + 2 - page); /* it may lie on two pages */
    if (memcmp(at, cpuid, 2) || mprotect(page, length, PROT_READ | PROT_WRITE | PROT_EXEC))
        abort();
    memcpy(at, trap, 2);
    mprotect(page, length, PROT_READ | PROT_EXEC);
}

unsigned la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie) {
    char path[PATH_MAX], library[PATH_MAX];
    unsigned long offset;
    FILE *file = fopen(getenv("PERSEID_AVX2_AT"), "r");
    if (file == NULL)
        abort();
    if (realpath(map->l_name, path))
        while (fscanf(file, " %4095[^\t] %lx", library, &offset) == 2)
            if (strcmp(library, path) == 0)
                replace((unsigned char *)(map->l_addr + offset));
    fclose(file);
    return 0;
}
