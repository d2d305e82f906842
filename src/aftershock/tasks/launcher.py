"""Run one Python program, given on standard input, in namespaces of its own and under limits.

A script for a process of its own: it sees to it that the program can do nothing, then becomes the program. It imports
the standard library alone, so that no other memory than the interpreter's is there to be read.

    launcher.py FOLDER isolated|limited

`isolated`: the program sees a root of its own with Python and the system's libraries, all read-only, and an empty
folder HOME in memory that is its home; no network device, no process but its own, no /proc, no capability. FOLDER is
where that root is mounted, in a mount namespace that ends with the program. `limited`: the program runs in FOLDER under
the limits alone.

The exit status is PASSED when the program ran to its end, NOT_RUN (and a line on standard error) when it could not be
run as asked for, anything else when it failed.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PASSED, NOT_RUN = 97, 98
"""Exit statuses that no program ends with by chance."""

CPU_SECONDS = 5
FILE_BYTES = 16 << 20

LIMITS = {
    "RLIMIT_CPU": CPU_SECONDS,
    "RLIMIT_AS": 1 << 30,
    "RLIMIT_FSIZE": FILE_BYTES,
    "RLIMIT_NOFILE": 64,
    "RLIMIT_CORE": 0,
    # The program itself: one process, no other thread. So the limits of a process are those of the program.
    "RLIMIT_NPROC": 1,
}
"""Seconds, bytes and numbers that the program gets at most; names of the standard library's `resource`."""

HOME = "/program"
NOBODY = 65534
READABLE = ("/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache")
"""What Python may need besides its own folder."""

# From <linux/sched.h>, <sys/mount.h> and <sys/prctl.h>.
NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DIE_WITH_PARENT, DUMPABLE, NO_NEW_PRIVILEGES = 1, 4, 38

# The seed is that of the judged program's own process: a program that draws has the same verdict in every run.
RUNNER = f"""
import os, random, sys
os.dup2(1, 2)
source = sys.stdin.read()
# A program that draws numbers is right or wrong alike in every run; this process runs nothing else.
random.seed(0)
try:
    exec(compile(source, "program", "exec"), {{"__name__": "program"}})
except BaseException:
    os._exit(1)
os._exit({PASSED})
"""


def _call(name: str, *arguments: object) -> None:
    """A function of the C library; raises OSError as the functions of `os` do."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str | None, target: Path | str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [text if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _die_with_parent() -> None:
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def enter_namespaces() -> None:
    """Leave the others' mounts, network, processes and shared memory; by way of a user namespace unless that is root's
    right anyway."""
    kinds = NEW_MOUNTS | NEW_HOSTNAME | NEW_IPC | NEW_PIDS | NEW_NETWORK
    if os.geteuid() == 0:
        try:
            return _call("unshare", kinds)
        except PermissionError:
            # Root of a container: what any user may do is left. Who changes its user loses its own files in /proc.
            _become_nobody()
            _call("prctl", DUMPABLE, 1, 0, 0, 0)
    user, group = os.geteuid(), os.getegid()
    _call("unshare", kinds | NEW_USERS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def make_root(root: Path) -> None:
    """Mount the program's root at a folder."""
    os.umask(0o022)
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("none", root, "tmpfs", NO_SETUID | NO_DEVICES, "mode=0755,size=1m")
    known: list[Path] = []
    for source in map(Path, (*READABLE, sys.base_prefix)):
        if source.exists() and not any(source.is_relative_to(other) for other in known):
            known.append(source)
            target = root / source.relative_to("/")
            (target if source.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
            if source.is_file():
                target.touch()
            _mount(str(source), target, None, BIND | RECURSIVE)
    home = root / HOME.lstrip("/")
    home.mkdir()
    for place, options in _mounts(root):
        # What was mounted without the right to execute has to stay so.
        kept = NO_EXEC if "noexec" in options else 0
        _mount(None, place, None, REMOUNT | BIND | READ_ONLY | NO_SETUID | NO_DEVICES | kept)
    space = f"mode=0777,size={FILE_BYTES},nr_inodes=1024"
    _mount("none", home, "tmpfs", NO_SETUID | NO_DEVICES | NO_EXEC, space)


def _mounts(root: Path) -> list[tuple[Path, list[str]]]:
    """What is mounted at and beneath a folder, with its options."""
    lines = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = [(Path(fields[4].encode().decode("unicode_escape")), fields[5].split(",")) for fields in lines]
    return [(place, options) for place, options in places if place.is_relative_to(root)]


def enter_root(root: Path) -> None:
    """Go there for good: who has no capability leaves no chroot, and in one the kernel makes no user namespace."""
    os.chroot(root)
    os.chdir(HOME)
    if os.geteuid() == 0:
        _become_nobody()
    _die_with_parent()
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def run() -> None:
    """Become the program, which takes the limits."""
    import resource  # Windows has none, and reads this file for its exit statuses.

    python = str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))
    # Sets are to come in the same order in every run, so the interpreter has to read its environment (no -I).
    home = str(Path.cwd())
    environment = {"HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    for name, most in LIMITS.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        own = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (own, own))
    os.execve(python, [python, "-s", "-P", "-S", "-B", "-c", RUNNER], environment)


def main() -> int:
    """The exit status of the program."""
    root = Path(sys.argv[1])
    try:
        if sys.argv[2] == "limited":
            os.chdir(root)
            run()
        _die_with_parent()
        enter_namespaces()
        make_root(root)
        child = os.fork()
        if child == 0:
            enter_root(root)
            run()
    except Exception as error:
        print(getattr(error, "strerror", None) or error, file=sys.stderr, flush=True)
        os._exit(NOT_RUN)
    return max(1, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    sys.exit(main())
