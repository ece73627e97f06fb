// Process 1 of a guest whose clocks are measured: tells on the console what they
// show at one moment and becomes the guest's own process 1. With bench=log on
// the kernel's command line it prints the kernel's log instead, and ends the
// guest. It needs no library, so that it is too small to change what it measures.
#include <linux/reboot.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

static long call(long n, long a, long b, long c, long d, long e) {
	long r;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return r;
}

// counter is the processor's time stamp counter.
static uint64_t counter(void) {
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static char *text(char *to, const char *from) {
	while (*from)
		*to++ = *from++;
	return to;
}

static char *number(char *to, uint64_t n) {
	if (n >= 10)
		to = number(to, n / 10);
	*to++ = '0' + n % 10;
	return to;
}

static int same(const char *a, const char *b) {
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

// tell writes the line into the kernel's log, which stamps it. Priority 2 comes
// to the console although it is "quiet".
static void tell(void) {
	char line[128];
	struct timespec up;
	call(SYS_mkdir, (long)"/dev", 0755, 0, 0, 0);
	call(SYS_mount, (long)"dev", (long)"/dev", (long)"devtmpfs", 0, 0);
	long kernel = call(SYS_open, (long)"/dev/kmsg", 1, 0, 0, 0);
	call(SYS_clock_gettime, CLOCK_BOOTTIME, (long)&up, 0, 0, 0);
	uint64_t now = counter();
	char *end = number(text(line, "<2>clock: counter="), now);
	end = number(text(end, " uptime="), up.tv_sec * UINT64_C(1000000000) + up.tv_nsec);
	end = text(end, "\n");
	call(SYS_write, kernel, (long)line, end - line, 0, 0);
	call(SYS_close, kernel, 0, 0, 0, 0);
	call(SYS_umount2, (long)"/dev", 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall start\n");

// start gets argc, the arguments, the environment.
__attribute__((used)) static void start(long *stack) {
	static char log[1 << 20];
	char **args = (char **)(stack + 1), **env = args + stack[0] + 1;
	tell();
	for (char **e = env; *e; e++)
		if (same(*e, "bench=log")) {
			long size = call(SYS_syslog, 3, (long)log, sizeof log, 0, 0);
			call(SYS_write, 1, (long)log, size, 0, 0);
			call(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, 0, 0);
		}
	call(SYS_execve, (long)"/init", (long)args, (long)env, 0, 0);
	for (;;)
		;
}
