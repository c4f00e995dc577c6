"""A program that tries to break out of its sandbox; `execution` runs it before any other.

It reads LIMITS, ENVIRONMENT, ISOLATED, ADDRESS, PARENT and CANARY, which stand before
it: the sandbox's limits, the names in its environment, whether it has namespaces, a socket that
listens outside, the parent's process and a file outside.
"""

ATTEMPTS = '''
import errno, json, os, socket

found = []

def holds(name, what, *kinds):
    """Notes an attempt that did not fail by one of these errors."""
    try:
        what()
    except kinds:
        return
    except BaseException as error:
        found.append(f"{name}: {type(error).__name__}: {error}")
        return
    found.append(name)

def fork_all():
    children = []
    try:
        for _ in range(LIMITS["processes"] + 8):
            child = os.fork()
            if not child:
                os.read(reading, 1)
                os._exit(0)
            children.append(child)
    finally:
        os.close(writing)
        for child in children:
            os.waitpid(child, 0)

reading, writing = os.pipe()
os.register_at_fork(after_in_child=lambda: os.close(writing))
import statistics  # the standard library can be read
holds("it has more memory than its limit", lambda: bytearray(LIMITS["memory"] + 1), MemoryError)
holds("it starts more processes than its limit", fork_all, BlockingIOError)
if sorted(os.environ) != ENVIRONMENT:
    found.append("it sees an environment that is not its own")
if ISOLATED:
    holds("it reaches the network", lambda: socket.create_connection(ADDRESS, 2), OSError)
    if [name for _, name in socket.if_nameindex()] not in ([], ["lo"]):
        found.append("it sees network interfaces")
    holds("it sees another process", lambda: os.kill(PARENT, 0), ProcessLookupError)
    holds("it sees /proc", lambda: os.listdir("/proc"), FileNotFoundError)
    holds("it reads files of others", lambda: open(CANARY).read(), FileNotFoundError)
    for path in ("/", "/usr", os.path.dirname(os.__file__)):
        holds(f"it writes into {path}", lambda: open(f"{path}/probe", "w"), OSError)
    holds("it has rights over its system", lambda: socket.sethostname("probe"), PermissionError)
    open("probe", "w").write("its own")
'''

VERDICT = 'if found: raise RuntimeError("; ".join(found))'
