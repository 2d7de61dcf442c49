/*
 * A FUSE filesystem that hands everything on to a folder, and fails, waits or lies where it is told to.
 *
 *     faulty_filesystem FOLDER MOUNTPOINT [write-back] [no-lseek] [no-fallocate]
 *
 * It mounts, says "mounted", and takes commands on standard input, a line each, answered by a line:
 *
 *     fail OPERATION NAME ERRNO START END   fail operations on files called NAME ("*": all of them) that
 *                                           touch bytes from START up to END
 *     slow OPERATION NAME MILLISECONDS      let each of them wait
 *     hold OPERATION NAME                   let them wait until "release"
 *     release
 *     clear                                 forget all rules, and release
 *     count OPERATION NAME                  tell how many of them have begun
 *
 * OPERATION is the name of one of FUSE's: read, write, fsync, truncate, fallocate, lseek, open, create,
 * unlink, rename, link, getxattr, setxattr. At the end of standard input it unmounts and ends.
 *
 * With write-back the kernel keeps what is written until somebody flushes or memory is short, and asks
 * lseek(SEEK_HOLE) of us, who know nothing of it: what is dirty is called a hole. A write that fails
 * then is told as an error of the flush, once, and its pages stay in the cache as if they were clean.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
#define ALL LLONG_MAX

struct rule {
	char operation[16], name[NAME_MAX + 1];
	int error, milliseconds, hold;
	long long start, end;
};

struct counter {
	char operation[16], name[NAME_MAX + 1];
	unsigned long begun;
};

static int root;
static int write_back;
static struct fuse *fuse;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;
static struct rule rules[MOST];
static int rule_count;
static struct counter counters[1024];
static int counter_count;

static const char *below(const char *path)
{
	return path[1] ? path + 1 : ".";
}

static const char *last(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static int result(int done)
{
	return done < 0 ? -errno : done;
}

static void count(const char *operation, const char *name)
{
	for (int i = 0; i < counter_count; i++)
		if (!strcmp(counters[i].operation, operation) && !strcmp(counters[i].name, name)) {
			counters[i].begun++;
			return;
		}
	if (counter_count == sizeof counters / sizeof *counters)
		return;
	struct counter *counter = &counters[counter_count++];
	snprintf(counter->operation, sizeof counter->operation, "%s", operation);
	snprintf(counter->name, sizeof counter->name, "%s", name);
	counter->begun = 1;
}

static int concerns(const struct rule *rule, const char *operation, const char *name)
{
	return !strcmp(rule->operation, operation) && (!strcmp(rule->name, "*") || !strcmp(rule->name, name));
}

static int is_held(const char *operation, const char *name)
{
	for (int i = 0; i < rule_count; i++)
		if (rules[i].hold && concerns(&rules[i], operation, name))
			return 1;
	return 0;
}

/* Do to an operation what the rules say; return 0, or the error (negative) that it fails with. */
static int meet(const char *operation, const char *path, long long start, long long end)
{
	const char *name = last(path);
	int error = 0, milliseconds = 0;

	pthread_mutex_lock(&lock);
	count(operation, name);
	while (is_held(operation, name))
		pthread_cond_wait(&released, &lock);
	for (int i = 0; i < rule_count; i++)
		if (concerns(&rules[i], operation, name) && start < rules[i].end && end > rules[i].start) {
			if (rules[i].error)
				error = -rules[i].error;
			milliseconds += rules[i].milliseconds;
		}
	pthread_mutex_unlock(&lock);
	if (milliseconds)
		nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000L}, NULL);
	return error;
}

static int meet_whole(const char *operation, const char *path)
{
	return meet(operation, path, 0, ALL);
}

static void command(char *line)
{
	struct rule rule = {.end = ALL};
	char word[16] = "";

	sscanf(line, "%15s", word);
	pthread_mutex_lock(&lock);
	if (!strcmp(word, "clear")) {
		rule_count = 0;
		puts("ok");
	} else if (!strcmp(word, "release")) {
		for (int i = 0; i < rule_count; i++)
			rules[i].hold = 0;
		puts("ok");
	} else if (sscanf(line, "count %15s %255s", rule.operation, rule.name) == 2) {
		unsigned long begun = 0;
		for (int i = 0; i < counter_count; i++)
			if (!strcmp(counters[i].operation, rule.operation) &&
			    (!strcmp(rule.name, "*") || !strcmp(counters[i].name, rule.name)))
				begun += counters[i].begun;
		printf("%lu\n", begun);
	} else if (rule_count == MOST) {
		puts("too many rules");
	} else if (sscanf(line, "fail %15s %255s %d %lld %lld", rule.operation, rule.name, &rule.error,
			  &rule.start, &rule.end) == 5 ||
		   (rule.error = 0,
		    sscanf(line, "slow %15s %255s %d", rule.operation, rule.name, &rule.milliseconds) == 3) ||
		   (rule.hold = sscanf(line, "hold %15s %255s", rule.operation, rule.name) == 2)) {
		rules[rule_count++] = rule;
		puts("ok");
	} else {
		puts("what?");
	}
	pthread_cond_broadcast(&released);
	pthread_mutex_unlock(&lock);
	fflush(stdout);
}

static void *take_commands(void *nothing)
{
	char line[1024];

	while (fgets(line, sizeof line, stdin))
		command(line);
	strcpy(line, "clear");
	command(line);
	fuse_exit(fuse);
	fuse_unmount(fuse);
	return nothing;
}

static void *start(struct fuse_conn_info *connection, struct fuse_config *config)
{
	if (write_back)
		connection->want |= FUSE_CAP_WRITEBACK_CACHE;
	config->use_ino = 1;
	config->nullpath_ok = 0;
	config->hard_remove = 1;
	config->kernel_cache = write_back;
	return NULL;
}

static int fs_getattr(const char *path, struct stat *found, struct fuse_file_info *file)
{
	return result(file ? fstat(file->fh, found)
			   : fstatat(root, below(path), found, AT_SYMLINK_NOFOLLOW));
}

static int open_below(const char *path, struct fuse_file_info *file, mode_t mode)
{
	int flags = file->flags & ~O_NOFOLLOW;
	int fd;

	if (write_back) { /* the kernel reads what it writes a part of, and appends by itself */
		flags &= ~O_APPEND;
		if ((flags & O_ACCMODE) == O_WRONLY)
			flags = (flags & ~O_ACCMODE) | O_RDWR;
	}
	fd = openat(root, below(path), flags & ~O_DIRECT, mode);
	if (fd < 0)
		return -errno;
	file->fh = fd;
	return 0;
}

static int fs_open(const char *path, struct fuse_file_info *file)
{
	int error = meet_whole("open", path);
	return error ? error : open_below(path, file, 0);
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *file)
{
	int error = meet_whole("create", path);
	return error ? error : open_below(path, file, mode);
}

static int fs_release(const char *path, struct fuse_file_info *file)
{
	close(file->fh);
	return 0;
}

static int fs_read(const char *path, char *data, size_t size, off_t offset, struct fuse_file_info *file)
{
	int error = meet("read", path, offset, offset + size);
	return error ? error : result(pread(file->fh, data, size, offset));
}

static int fs_write(const char *path, const char *data, size_t size, off_t offset, struct fuse_file_info *file)
{
	int error = meet("write", path, offset, offset + size);
	return error ? error : result(pwrite(file->fh, data, size, offset));
}

static int fs_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
	int error = meet_whole("fsync", path);
	return error ? error : result(data_only ? fdatasync(file->fh) : fsync(file->fh));
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *file)
{
	int error = meet_whole("truncate", path);
	if (error)
		return error;
	if (file)
		return result(ftruncate(file->fh, size));
	int fd = openat(root, below(path), O_WRONLY);
	if (fd < 0)
		return -errno;
	error = result(ftruncate(fd, size));
	close(fd);
	return error;
}

static int fs_fallocate(const char *path, int mode, off_t offset, off_t size, struct fuse_file_info *file)
{
	int error = meet("fallocate", path, offset, offset + size);
	return error ? error : result(fallocate(file->fh, mode, offset, size));
}

static off_t fs_lseek(const char *path, off_t offset, int whence, struct fuse_file_info *file)
{
	int error = meet("lseek", path, offset, ALL);
	if (error)
		return error;
	off_t found = lseek(file->fh, offset, whence);
	return found < 0 ? -errno : found;
}

static int fs_unlink(const char *path)
{
	int error = meet_whole("unlink", path);
	return error ? error : result(unlinkat(root, below(path), 0));
}

static int fs_rename(const char *from, const char *to, unsigned int flags)
{
	int error = meet_whole("rename", from);
	return error ? error : result(renameat2(root, below(from), root, below(to), flags));
}

static int fs_link(const char *from, const char *to)
{
	int error = meet_whole("link", from);
	return error ? error : result(linkat(root, below(from), root, below(to), 0));
}

static int fs_symlink(const char *to, const char *path)
{
	return result(symlinkat(to, root, below(path)));
}

static int fs_readlink(const char *path, char *found, size_t size)
{
	ssize_t length = readlinkat(root, below(path), found, size - 1);
	if (length < 0)
		return -errno;
	found[length] = 0;
	return 0;
}

static int fs_mknod(const char *path, mode_t mode, dev_t device)
{
	return result(mknodat(root, below(path), mode, device));
}

static int fs_mkdir(const char *path, mode_t mode)
{
	return result(mkdirat(root, below(path), mode));
}

static int fs_rmdir(const char *path)
{
	return result(unlinkat(root, below(path), AT_REMOVEDIR));
}

static int fs_readdir(const char *path, void *list, fuse_fill_dir_t add, off_t offset,
		      struct fuse_file_info *file, enum fuse_readdir_flags flags)
{
	int fd = openat(root, below(path), O_RDONLY | O_DIRECTORY);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!folder)
		return -errno;
	while ((entry = readdir(folder)))
		add(list, entry->d_name, NULL, 0, 0);
	closedir(folder);
	return 0;
}

static int fs_fsyncdir(const char *path, int data_only, struct fuse_file_info *file)
{
	int fd = openat(root, below(path), O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return -errno;
	int error = result(fsync(fd));
	close(fd);
	return error;
}

static int fs_chmod(const char *path, mode_t mode, struct fuse_file_info *file)
{
	return result(file ? fchmod(file->fh, mode) : fchmodat(root, below(path), mode, 0));
}

static int fs_chown(const char *path, uid_t user, gid_t group, struct fuse_file_info *file)
{
	return result(file ? fchown(file->fh, user, group)
			   : fchownat(root, below(path), user, group, AT_SYMLINK_NOFOLLOW));
}

static int fs_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *file)
{
	return result(file ? futimens(file->fh, times)
			   : utimensat(root, below(path), times, AT_SYMLINK_NOFOLLOW));
}

static int fs_statfs(const char *path, struct statvfs *found)
{
	return result(fstatvfs(root, found));
}

/* There is no openat() for extended attributes; a name below /proc leads to what a descriptor is of. */
static int fs_setxattr(const char *path, const char *name, const char *value, size_t size, int flags)
{
	char real[PATH_MAX];
	int error = meet_whole("setxattr", path);
	snprintf(real, sizeof real, "/proc/self/fd/%d/%s", root, below(path));
	return error ? error : result(lsetxattr(real, name, value, size, flags));
}

static int fs_getxattr(const char *path, const char *name, char *value, size_t size)
{
	char real[PATH_MAX];
	int error = meet_whole("getxattr", path);
	snprintf(real, sizeof real, "/proc/self/fd/%d/%s", root, below(path));
	return error ? error : result(lgetxattr(real, name, value, size));
}

static int fs_listxattr(const char *path, char *list, size_t size)
{
	char real[PATH_MAX];
	snprintf(real, sizeof real, "/proc/self/fd/%d/%s", root, below(path));
	return result(llistxattr(real, list, size));
}

static int fs_removexattr(const char *path, const char *name)
{
	char real[PATH_MAX];
	snprintf(real, sizeof real, "/proc/self/fd/%d/%s", root, below(path));
	return result(lremovexattr(real, name));
}

static struct fuse_operations operations = {
	.init = start, .getattr = fs_getattr, .open = fs_open, .create = fs_create, .release = fs_release,
	.read = fs_read, .write = fs_write, .fsync = fs_fsync, .truncate = fs_truncate,
	.fallocate = fs_fallocate, .lseek = fs_lseek, .unlink = fs_unlink, .rename = fs_rename,
	.link = fs_link, .symlink = fs_symlink, .readlink = fs_readlink, .mknod = fs_mknod,
	.mkdir = fs_mkdir, .rmdir = fs_rmdir, .readdir = fs_readdir, .fsyncdir = fs_fsyncdir,
	.chmod = fs_chmod, .chown = fs_chown, .utimens = fs_utimens, .statfs = fs_statfs,
	.setxattr = fs_setxattr, .getxattr = fs_getxattr, .listxattr = fs_listxattr,
	.removexattr = fs_removexattr,
};

int main(int argc, char **argv)
{
	char *options[] = {argv[0], "-o", "default_permissions,allow_other,fsname=faulty", NULL};
	struct fuse_args arguments = FUSE_ARGS_INIT(3, options);
	pthread_t commands;

	if (argc < 3 || (root = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
		perror("faulty_filesystem");
		return 2;
	}
	for (int i = 3; i < argc; i++) {
		if (!strcmp(argv[i], "write-back"))
			write_back = 1;
		else if (!strcmp(argv[i], "no-lseek"))
			operations.lseek = NULL;
		else if (!strcmp(argv[i], "no-fallocate"))
			operations.fallocate = NULL;
		else
			return 2;
	}
	umask(0);
	fuse = fuse_new(&arguments, &operations, sizeof operations, NULL);
	if (!fuse || fuse_mount(fuse, argv[2]))
		return 1;
	puts("mounted");
	fflush(stdout);
	pthread_create(&commands, NULL, take_commands, NULL);
	fuse_loop_mt(fuse, 0);
	return 0;
}
