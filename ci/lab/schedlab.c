// SPDX-License-Identifier: GPL-2.0
/*
 * schedlab - loads and measurements for schedulers, one static program for the guest.
 *
 *   schedlab wake HOGS SAMPLES [fifo]   wake-up latency of 4 threads that sleep 2 ms, among
 *                                       HOGS busy processes, and how evenly those were served
 *   schedlab shares SECONDS NICE...     busy processes of these nice values: their shares
 *   schedlab groups SECONDS CGROUP...   a busy process for each CPU in each: the groups' shares
 *   schedlab pingpong ROUNDS [CPU]      two processes and two pipes, bound to CPU if given
 *   schedlab tree JOBS COUNT            a make-like tree: COUNT short processes, JOBS a time
 *   schedlab deep TASKS SECONDS         TASKS busy threads: how evenly they were served
 *   schedlab yield TASKS SECONDS        TASKS threads that yield all the time: what a turn takes,
 *                                       and the fewest and most that a thread had
 *
 * Every result is one line of words and numbers on standard output.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS		4
#define ROUNDS		10	/* of wake: where the threads start matters, so they start often */
#define PERIOD_NS	2000000LL

static pid_t kids[20000];
static int nr_kids;

static long long now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long cpu_ns(pid_t pid)
{
	clockid_t clock;

	return clock_getcpuclockid(pid, &clock) ? 0 : now_ns(clock);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void kill_kids(void)
{
	for (int i = 0; i < nr_kids; i++)
		kill(kids[i], SIGKILL);
	for (int i = 0; i < nr_kids; i++)
		waitpid(kids[i], NULL, 0);
	nr_kids = 0;
}

/* A process that never sleeps. */
static pid_t hog(int nice_value)
{
	pid_t pid = fork();

	if (pid < 0) {
		kill_kids();
		die("fork");
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setpriority(PRIO_PROCESS, 0, nice_value);
		for (;;)
			__asm__ volatile("");
	}
	return kids[nr_kids++] = pid;
}

/* Its children are not. */
static void be_realtime(void)
{
	struct sched_param param = { .sched_priority = 50 };

	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param))
		die("sched_setscheduler");
}

static void pin(pid_t pid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(pid, sizeof(set), &set))
		die("sched_setaffinity");
}

/* Jain's index of fairness: 1 when all are equal, 1/n when one has everything. */
static double jain(const double *x, int n)
{
	double sum = 0, squares = 0;

	for (int i = 0; i < n; i++) {
		sum += x[i];
		squares += x[i] * x[i];
	}
	return squares > 0 ? sum * sum / (n * squares) : 0;
}

/* ---- wake ---- */

struct sleeper {
	pthread_t thread;
	int samples, fifo;
	double *us;
};

static void *sleeper_main(void *arg)
{
	struct sleeper *s = arg;
	struct timespec t = { .tv_nsec = PERIOD_NS };

	prctl(PR_SET_TIMERSLACK, 1);
	if (s->fifo)
		be_realtime();
	/* The first are not counted: until then everybody is where he stays. */
	for (int i = -20; i < s->samples; i++) {
		long long due = now_ns(CLOCK_MONOTONIC) + PERIOD_NS;

		nanosleep(&t, NULL);
		if (i >= 0)
			s->us[i] = (now_ns(CLOCK_MONOTONIC) - due) / 1000.0;
	}
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static int wake(int hogs, int samples, int fifo)
{
	struct sleeper s[THREADS];
	double *us = calloc(samples, sizeof(*us)), *ran = calloc(hogs + 1, sizeof(*ran));
	int each = samples / THREADS / ROUNDS;

	for (int i = 0; i < hogs; i++)
		hog(0);
	usleep(200000);
	for (int i = 0; i < hogs; i++)
		ran[i] = -cpu_ns(kids[i]);
	for (int round = 0; round < ROUNDS; round++) {
		for (int i = 0; i < THREADS; i++) {
			s[i] = (struct sleeper){ .samples = each, .fifo = fifo,
						 .us = us + (round * THREADS + i) * each };
			errno = pthread_create(&s[i].thread, NULL, sleeper_main, &s[i]);
			if (errno)
				die("pthread_create");
		}
		for (int i = 0; i < THREADS; i++)
			pthread_join(s[i].thread, NULL);
	}
	for (int i = 0; i < hogs; i++)
		ran[i] += cpu_ns(kids[i]);
	kill_kids();
	samples = each * THREADS * ROUNDS;
	qsort(us, samples, sizeof(*us), by_value);
	printf("wake hogs %d samples %d p50 %.1f p99 %.1f p99.9 %.1f max %.1f us jain %.4f\n",
	       hogs, samples, us[samples / 2], us[samples * 99LL / 100],
	       us[samples * 999LL / 1000], us[samples - 1], hogs ? jain(ran, hogs) : 1.0);
	return 0;
}

/* ---- shares ---- */

static int shares(double seconds, int n, char **nice_values)
{
	double *ran = calloc(n, sizeof(*ran)), sum = 0;

	for (int i = 0; i < n; i++)
		hog(atoi(nice_values[i]));
	usleep(500000);
	for (int i = 0; i < n; i++)
		ran[i] = -cpu_ns(kids[i]);
	usleep(seconds * 1e6);
	for (int i = 0; i < n; i++)
		sum += ran[i] += cpu_ns(kids[i]);
	kill_kids();
	printf("shares");
	for (int i = 0; i < n; i++)
		printf(" %s:%.4f", nice_values[i], ran[i] / sum);
	printf("\n");
	return 0;
}

/* ---- groups ---- */

static void enter(const char *cgroup, pid_t pid)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	f = fopen(path, "w");
	if (!f || fprintf(f, "%d", pid) < 0 || fclose(f))
		die(path);
}

static int groups(double seconds, int n, char **cgroups)
{
	int each = sysconf(_SC_NPROCESSORS_ONLN);
	double *ran = calloc(n, sizeof(*ran)), sum = 0;

	for (int i = 0; i < n * each; i++)
		enter(cgroups[i / each], hog(0));
	usleep(500000);
	for (int i = 0; i < n * each; i++)
		ran[i / each] -= cpu_ns(kids[i]);
	usleep(seconds * 1e6);
	for (int i = 0; i < n * each; i++)
		ran[i / each] += cpu_ns(kids[i]);
	kill_kids();
	for (int i = 0; i < n; i++)
		sum += ran[i];
	printf("groups");
	for (int i = 0; i < n; i++)
		printf(" %s:%.4f", cgroups[i], ran[i] / sum);
	printf("\n");
	return 0;
}

/* ---- pingpong ---- */

static int pingpong(int rounds, int cpu)
{
	int there[2], back[2];
	long long start = 0;
	char c = 0;

	if (pipe(there) || pipe(back))
		die("pipe");
	if (cpu >= 0)
		pin(0, cpu);
	kids[nr_kids] = fork();
	if (kids[nr_kids] < 0)
		die("fork");
	if (!kids[nr_kids]) {
		while (read(there[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
			;
		_exit(0);
	}
	nr_kids++;
	for (int i = -rounds / 10; i < rounds; i++) {
		if (i == 0)
			start = now_ns(CLOCK_MONOTONIC);
		if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
			die("pipe");
	}
	printf("pingpong rounds %d cpu %d: %.3f us a round\n", rounds, cpu,
	       (now_ns(CLOCK_MONOTONIC) - start) / 1000.0 / rounds);
	kill_kids();
	return 0;
}

/* ---- tree ---- */

/* What a compiler does, roughly: read, compute, write, end. */
static void job(int i)
{
	static volatile unsigned sink;
	int fd = open("/proc/self/maps", O_RDONLY);
	char buf[4096];

	while (fd >= 0 && read(fd, buf, sizeof(buf)) > 0)
		;
	for (unsigned n = 0; n < 200000u + (i * 7919u) % 400000u; n++)
		sink += n;
	_exit(0);
}

static int tree(int jobs, int count)
{
	long long start = now_ns(CLOCK_MONOTONIC);
	int running = 0, started = 0;

	while (started < count || running) {
		while (running < jobs && started < count) {
			pid_t shell = fork();

			if (shell < 0)
				die("fork");
			if (!shell) {
				/* make starts a shell, which starts the compiler. */
				pid_t pid = fork();

				if (!pid)
					job(started);
				waitpid(pid, NULL, 0);
				_exit(0);
			}
			running++;
			started++;
		}
		wait(NULL);
		running--;
	}
	printf("tree jobs %d count %d: %.3f ms\n", jobs, count,
	       (now_ns(CLOCK_MONOTONIC) - start) / 1e6);
	return 0;
}

/* ---- crowds: deep and yield ---- */

/* Threads, not processes: what those share after a fork makes the next one wait for all of them. */
struct member {
	pthread_t thread;
	volatile long turns;
};

static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;
static volatile int over;

static void pass_gate(void)
{
	/* Open once all are there. */
	pthread_rwlock_rdlock(&gate);
	pthread_rwlock_unlock(&gate);
}

static struct member *start_crowd(int tasks, void *(*run)(void *))
{
	struct member *crowd = calloc(tasks, sizeof(*crowd));
	pthread_attr_t small;

	if (!crowd)
		die("calloc");
	/* Or we would have the share of one among so many. */
	be_realtime();
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 32768);
	pthread_rwlock_wrlock(&gate);
	for (int i = 0; i < tasks; i++)
		if (pthread_create(&crowd[i].thread, &small, run, &crowd[i]))
			die("pthread_create");
	pthread_rwlock_unlock(&gate);
	return crowd;
}

static void end_crowd(struct member *crowd, int tasks)
{
	over = 1;
	for (int i = 0; i < tasks; i++)
		pthread_join(crowd[i].thread, NULL);
}

static void *hog_main(void *arg)
{
	pass_gate();
	while (!over)
		;
	return NULL;
}

static long long member_cpu_ns(const struct member *m)
{
	clockid_t clock;

	return pthread_getcpuclockid(m->thread, &clock) ? 0 : now_ns(clock);
}

static int deep(int tasks, double seconds)
{
	struct member *crowd = start_crowd(tasks, hog_main);
	double *ran = calloc(tasks, sizeof(*ran));
	int never = 0;

	for (int i = 0; i < tasks; i++)
		ran[i] = -member_cpu_ns(&crowd[i]);
	usleep(seconds * 1e6);
	for (int i = 0; i < tasks; i++) {
		ran[i] += member_cpu_ns(&crowd[i]);
		never += ran[i] <= 0;
	}
	end_crowd(crowd, tasks);
	printf("deep tasks %d seconds %.1f jain %.4f never %d\n", tasks, seconds,
	       jain(ran, tasks), never);
	return 0;
}

static void *yielder_main(void *arg)
{
	struct member *me = arg;

	pass_gate();
	while (!over) {
		sched_yield();
		me->turns++;
	}
	return NULL;
}

static int yield(int tasks, double seconds)
{
	struct member *crowd = start_crowd(tasks, yielder_main);
	long *before = calloc(tasks, sizeof(*before));
	long all = 0, least = -1, most = 0;
	long long start, took;

	/* What they do to begin with is not what is asked about. */
	for (int i = 0; i < tasks; i++)
		while (crowd[i].turns < 2)
			usleep(10000);
	for (int i = 0; i < tasks; i++)
		before[i] = crowd[i].turns;
	start = now_ns(CLOCK_MONOTONIC);
	usleep(seconds * 1e6);
	took = now_ns(CLOCK_MONOTONIC) - start;
	for (int i = 0; i < tasks; i++) {
		long had = crowd[i].turns - before[i];

		all += had;
		least = least < 0 || had < least ? had : least;
		most = had > most ? had : most;
	}
	end_crowd(crowd, tasks);
	printf("yield tasks %d: %.0f ns a turn, least %ld most %ld\n", tasks,
	       (double)took / all, least, most);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	int n = argc > 2 ? atoi(argv[2]) : 0;

	if (!strcmp(what, "wake") && argc > 3)
		return wake(n, atoi(argv[3]), argc > 4);
	if (!strcmp(what, "shares") && argc > 3)
		return shares(atof(argv[2]), argc - 3, argv + 3);
	if (!strcmp(what, "groups") && argc > 3)
		return groups(atof(argv[2]), argc - 3, argv + 3);
	if (!strcmp(what, "pingpong"))
		return pingpong(n, argc > 3 ? atoi(argv[3]) : -1);
	if (!strcmp(what, "tree") && argc > 3)
		return tree(n, atoi(argv[3]));
	if (!strcmp(what, "deep") && argc > 3)
		return deep(n, atof(argv[3]));
	if (!strcmp(what, "yield") && argc > 3)
		return yield(n, atof(argv[3]));
	fprintf(stderr, "usage: see the top of schedlab.c\n");
	return 2;
}
