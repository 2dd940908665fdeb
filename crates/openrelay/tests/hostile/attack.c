/* What a build of a hostile source tree may try. usage: attack NAME OUTSIDE OUT VICTIM PORT
 * Ends with 0 and prints EFFECT where it has an effect outside, with 1 where it is refused. Limits are tried with bounded
 * amounts, so that the same program ends by itself where its limits are wide. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *outside, *out;
static int victim, port;

static char *in(const char *folder, const char *name) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s", folder, name) < 0) exit(2);
    return path;
}

static int reads(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY);
    return fd >= 0 && read(fd, &byte, 1) == 1;
}

static int of_victim(const char *name, int flags) {
    char path[128];
    snprintf(path, sizeof path, "/proc/%d/%s", victim, name);
    return open(path, flags);
}

static struct sockaddr_un at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    return address;
}

static int inet(int kind) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, kind, 0);
    return fd >= 0 && connect(fd, (void *)&address, sizeof address) == 0 && write(fd, "x", 1) == 1;
}

static int unix_stream(void) {
    struct sockaddr_un address = at(in(outside, "stream"));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd >= 0 && connect(fd, (void *)&address, sizeof address) == 0;
}

static int pair_datagram(void) {
    struct sockaddr_un address = at(in(outside, "datagram"));
    int fds[2];
    return socketpair(AF_UNIX, SOCK_DGRAM, 0, fds) == 0
        && sendto(fds[0], "x", 1, 0, (void *)&address, sizeof address) == 1;
}

static int pair_stream(void) {
    struct sockaddr_un address = at(in(outside, "stream"));
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return 0;
    /* A connected pair never connects again; that there is a socket at all is the effect. */
    connect(fds[0], (void *)&address, sizeof address);
    return 1;
}

static int abstract_socket(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "openrelay-test-%d", victim);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd >= 0 && bind(fd, (void *)&address, sizeof address) == 0;
}

static int attaches(void) {
    int status;
    if (ptrace(PTRACE_ATTACH, victim, 0, 0) != 0) return 0;
    waitpid(victim, &status, 0);
    return ptrace(PTRACE_DETACH, victim, 0, 0) == 0;
}

/* The address of a page that the victim, a copy of this process's image, may have or not: EFAULT means that it was allowed. */
static int reads_memory(void) {
    char here[8];
    struct iovec own = {here, sizeof here}, other = {(void *)&victim, sizeof here};
    return process_vm_readv(victim, &own, 1, &other, 1, 0) >= 0 || errno == EFAULT;
}

static int takes_descriptor(void) {
    int fd = syscall(SYS_pidfd_open, victim, 0);
    return fd >= 0 && syscall(438, fd, 0, 0) >= 0;
}

static int handle(void) {
    struct { struct file_handle head; char rest[128]; } found = {.head.handle_bytes = 128};
    int id, folder = open(outside, O_RDONLY);
    if (name_to_handle_at(AT_FDCWD, in(outside, "secret"), &found.head, &id, 0) != 0) return 0;
    return open_by_handle_at(folder, &found.head, O_RDONLY) >= 0;
}

static int new_user(void) { return unshare(CLONE_NEWUSER) == 0; }

static int mounts(void) {
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 && mount("none", out, "tmpfs", 0, NULL) == 0;
}

static int clones(void) {
    int child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    return child > 0;
}

static int sets_id(void) {
    char *path = in(out, "chmod");
    close(open(path, O_CREAT | O_WRONLY, 0700));
    return chmod(path, 04755) == 0;
}

static int creates_set_id(void) {
    int fd = open(in(out, "created"), O_CREAT | O_EXCL | O_WRONLY, 04755);
    struct stat about;
    return fd >= 0 && fstat(fd, &about) == 0 && about.st_mode & S_ISUID;
}

static int enters(void) {
    int fd = of_victim("ns/mnt", O_RDONLY);
    return fd >= 0 && setns(fd, 0) == 0;
}

static int leaves_daemon(void) {
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            /* Nothing that its parent waits for. */
            for (int fd = 0; fd < 3; fd++) close(fd);
            for (;;) pause();
        }
        _exit(0);
    }
    wait(NULL);
    return 1;
}

static void naps(double seconds) {
    struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

/* 300 processes that wait for their parent's end. */
static int forks(void) {
    int gate[2], count = 0;
    if (pipe(gate) != 0) return 0;
    for (int index = 0; index < 300; index++) {
        int child = fork();
        if (child == 0) {
            char byte;
            close(gate[1]);
            if (read(gate[0], &byte, 1) < 0) _exit(1);
            _exit(0);
        }
        count += child > 0;
    }
    naps(0.5);
    return count == 300;
}

static int takes(size_t bytes) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    for (size_t at = 0; at < bytes; at += 4096) memory[at] = 1;
    naps(0.5);
    return 1;
}

static int shares(size_t bytes) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    for (size_t at = 0; at < bytes; at += 4096) memory[at] = 1;
    naps(0.5);
    return 1;
}

static int takes_together(void) {
    for (int index = 0; index < 8; index++)
        if (fork() == 0) _exit(!takes(48 << 20));
    int status, good = 1;
    while (wait(&status) > 0) good &= status == 0;
    return good;
}

static int fills(const char *path, int removed) {
    static char block[1 << 20];
    memset(block, 7, sizeof block);
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (removed) unlink(path);
    for (int index = 0; index < 160; index++)
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block) return 0;
    naps(1);
    return 1;
}

static int many_files(void) {
    char name[32];
    for (int index = 0; index < 17500; index++) {
        snprintf(name, sizeof name, "file-%d", index);
        char *path = in(out, name);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        if (fd < 0) return 0;
        close(fd);
        free(path);
    }
    naps(3);
    return 1;
}

/* Folders so deep that their path is too long for whoever measures them by it. */
static int deep(void) {
    char name[201];
    memset(name, 'd', 200);
    name[200] = 0;
    if (chdir(out) != 0) return 0;
    for (int index = 0; index < 40; index++)
        if (mkdir(name, 0700) != 0 || chdir(name) != 0) return 0;
    naps(1);
    return 1;
}

static int hangs(void) {
    for (int signal = 1; signal < 32; signal++)
        if (signal != SIGKILL && signal != SIGSTOP && signal != SIGSEGV) sigaction(signal, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    naps(3);
    return 1;
}

/* Whether there is an object of System V's with this number, which is removed again. */
static int removes(long call, long id) {
    if (id < 0) return 0;
    if (call == SYS_semctl) syscall(call, id, 0, IPC_RMID, 0);
    else syscall(call, id, IPC_RMID, NULL);
    return 1;
}

static char *name_of_its_own(void) {
    char *name = NULL;
    if (asprintf(&name, "openrelay-test-%d", victim) < 0) exit(2);
    return name;
}

static int x32(void) { return syscall(0x40000000 | 41, AF_INET, SOCK_STREAM, 0) >= 0; }

static int run(const char *name) {
    char *secret = in(outside, "secret");
#define IS(text) (strcmp(name, text) == 0)
    if (IS("read")) return reads(secret);
    if (IS("read-by-root-link")) return reads(in("/proc/self/root", secret));
    if (IS("read-by-link")) return symlink(secret, in(out, "link")) == 0 && reads(in(out, "link"));
    if (IS("list")) return access(outside, R_OK) == 0;
    if (IS("hard-link")) return link(secret, in(out, "hard")) == 0;
    if (IS("write")) return open(secret, O_WRONLY) >= 0;
    if (IS("create")) return open(in(outside, "new"), O_CREAT | O_WRONLY, 0600) >= 0;
    if (IS("rename")) return rename(secret, secret) == 0;
    if (IS("truncate")) return truncate(in(outside, "other"), 0) == 0;
    if (IS("modes")) return chmod(secret, 0640) == 0;
    if (IS("times")) return utimensat(AT_FDCWD, secret, (struct timespec[2]){{1, 0}, {1, 0}}, 0) == 0;
    if (IS("owner")) return chown(secret, getuid(), getgid()) == 0;
    if (IS("attributes")) return syscall(SYS_setxattr, secret, "user.test", "x", 1, 0) == 0;
    if (IS("cargo-settings")) return reads(in(outside, "cargo/config.toml"));
    if (IS("cargo-git")) return reads(in(outside, "cargo/git/db"));
    if (IS("environment-of-others")) return of_victim("environ", O_RDONLY) >= 0;
    if (IS("root-of-others")) return of_victim("root/etc", O_RDONLY) >= 0;
    if (IS("memory-of-others")) return of_victim("mem", O_RDWR) >= 0;
    if (IS("processes-of-others")) return of_victim("stat", O_RDONLY) >= 0;
    if (IS("tcp")) return inet(SOCK_STREAM);
    if (IS("udp")) return inet(SOCK_DGRAM);
    if (IS("unix-stream")) return unix_stream();
    if (IS("socketpair-datagram")) return pair_datagram();
    if (IS("socketpair-stream")) return pair_stream();
    if (IS("abstract")) return abstract_socket();
    if (IS("netlink")) return socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) >= 0;
    if (IS("packets")) return socket(AF_PACKET, SOCK_RAW, 0) >= 0;
    if (IS("vsock")) return socket(AF_VSOCK, SOCK_STREAM, 0) >= 0;
    if (IS("shared-memory")) return removes(SYS_shmctl, syscall(SYS_shmget, 0, 4096, 01600));
    if (IS("message-queue")) return removes(SYS_msgctl, syscall(SYS_msgget, 0, 01600));
    if (IS("semaphores")) return removes(SYS_semctl, syscall(SYS_semget, 0, 1, 01600));
    if (IS("posix-queue")) {
        char *own = name_of_its_own();
        int made = syscall(SYS_mq_open, own, O_RDWR | O_CREAT, 0600, NULL);
        if (made >= 0) syscall(SYS_mq_unlink, own);
        return made >= 0;
    }
    if (IS("posix-shared-memory")) {
        /* Of the victim's: an object of its own stays inside. */
        return shm_open(name_of_its_own(), O_RDWR, 0) >= 0;
    }
    if (IS("ptrace")) return attaches();
    if (IS("process_vm_readv")) return reads_memory();
    if (IS("signal")) return kill(victim, 0) == 0;
    if (IS("pidfd_getfd")) return takes_descriptor();
    if (IS("io_uring")) { char params[256] = {0}; return syscall(425, 8, params) >= 0; }
    if (IS("bpf")) { uint32_t map[32] = {2, 4, 4, 1}; return syscall(SYS_bpf, 0, map, sizeof map) >= 0; }
    if (IS("userfaultfd")) return syscall(SYS_userfaultfd, 1) >= 0;
    if (IS("perf_event_open")) {
        uint32_t event[32] = {1, 128};
        return syscall(SYS_perf_event_open, event, 0, -1, -1, 0) >= 0;
    }
    if (IS("keyctl")) return syscall(SYS_add_key, "user", "openrelay-test", "x", 1, -3) >= 0;
    if (IS("open_by_handle_at")) return handle();
    if (IS("setns")) return enters();
    if (IS("user-namespace")) return new_user();
    if (IS("user-namespace-clone")) return clones();
    if (IS("mount")) return mounts();
    if (IS("chroot")) return chroot("/usr") == 0;
    if (IS("set-user-id")) return sets_id();
    if (IS("set-user-id-created")) return creates_set_id();
    if (IS("device")) return mknod(in(out, "device"), S_IFBLK | 0600, 0x0800) == 0;
    if (IS("core-pattern")) return open("/proc/sys/kernel/core_pattern", O_WRONLY) >= 0;
    if (IS("kernel-memory")) return open("/proc/kcore", O_RDONLY) >= 0;
    if (IS("kernel-settings")) return access("/sys/kernel", R_OK) == 0;
    if (IS("machine")) return reads("/etc/passwd");
    if (IS("reserve-disk")) { int fd = open(in(out, "reserved"), O_CREAT | O_WRONLY, 0600); return fallocate(fd, 0, 0, 8 << 20) == 0; }
    if (IS("x32")) return x32();
    if (IS("daemon")) return leaves_daemon();
    if (IS("forks")) return forks();
    if (IS("memory")) return takes(256 << 20);
    if (IS("memory-shared")) return shares(256 << 20);
    if (IS("memory-together")) return takes_together();
    if (IS("disk")) return fills(in(out, "big"), 0);
    if (IS("disk-removed")) return fills(in(out, "gone"), 1);
    if (IS("disk-files")) return many_files();
    if (IS("disk-deep")) return deep();
    if (IS("hang")) return hangs();
    if (IS("victim")) for (;;) pause();
    fprintf(stderr, "no attack is called %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    outside = argv[2];
    out = argv[3];
    victim = atoi(argv[4]);
    port = atoi(argv[5]);
    errno = 0;
    if (run(argv[1])) {
        puts("EFFECT");
        return 0;
    }
    printf("refused: %s\n", strerror(errno));
    return 1;
}
