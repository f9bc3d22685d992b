"""Programs that do anything but what was asked: each with what it is up to, none of which may work.

The task is `double(x)`: `double(3) == 6` and `double(5) == 10`, as assertions, as calls or by standard input.
Most try something and then answer wrongly; their twins try the same and then answer rightly, and have to pass:
what a program tries is no part of its score. `@NAME@` stands for what a run puts in: see `zoo_run`.
"""

# ruff: noqa: E501  # programs read best as they are

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

ASSERTIONS: dict[str, Any] = {"test_list": ["assert double(3) == 6", "assert double(5) == 10"]}
CALLS: dict[str, Any] = {"input_output": {"fn_name": "double", "inputs": [[3], [5]], "outputs": [6, 10]}}
INPUT: dict[str, Any] = {"input_output": {"inputs": ["3\n", "5\n"], "outputs": ["6\n", "10\n"]}}
LOOSE: dict[str, Any] = {
    "test_list": [
        "assert words(3).startswith('six')",
        "assert 'ten' in words(5)",
        "assert words(3)",
        "assert words(3) == 'six' or words(3) != words(3)",
        "assert words(3).count('s') == 1",
    ]
}
WRONG = "def double(x):\n    return -1\n"
RIGHT = "def double(x):\n    return 2 * x\n"


@dataclass(frozen=True)
class Mischief:
    """A program's part.

    Attributes:
        code: what it does.
        row: the tests.
        whole: whether the code is the program; else a wrong answer follows.
        twin: whether the same with a right answer behind it has to pass.
        runs: how often it runs, one after the other; none of them may pass.
    """

    code: str
    row: dict[str, Any]
    whole: bool = False
    twin: bool = True
    runs: int = 1

    @property
    def program(self) -> str:
        code = textwrap.dedent(self.code)
        return code if self.whole else f"{code}\n{WRONG}"

    @property
    def twins_program(self) -> str:
        tried = textwrap.indent(textwrap.dedent(self.code), "    ")
        return f"try:\n{tried}\nexcept BaseException:\n    pass\n{RIGHT}"


def tries(code: str, twin: bool = True) -> Mischief:
    return Mischief(code, ASSERTIONS, twin=twin)


def whole(code: str, row: dict[str, Any] = ASSERTIONS, runs: int = 1) -> Mischief:
    return Mischief(code, row, whole=True, twin=False, runs=runs)


def syscall(*arguments: Any) -> str:
    given = ", ".join(map(str, arguments))
    return f"import ctypes, os\nif ctypes.CDLL(None, use_errno=True).syscall({given}) < 0:\n    raise OSError(ctypes.get_errno())"


_CLAIMS = r"""
import json, struct
lines = b'["number", 2]\n[0, true]\n[1, true]\n["end", ""]\n[0, 6]\n[1, 10]\n'
reply = json.dumps({"value": 6}).encode()
said = lines + struct.pack("=I", len(reply)) + reply
"""

ZOO: dict[str, Mischief] = {
    # Time
    "endless_loop": whole("def double(x):\n    while True: pass"),
    "endless_loop_at_import": whole("while True: pass"),
    "sleeps": whole("import time\ndef double(x):\n    time.sleep(1000)"),
    "ignores_signals": whole(
        """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass
        """
    ),
    "raises_its_limits": whole(
        """
        import resource, ctypes
        for name in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
            try: resource.setrlimit(name, (resource.RLIM_INFINITY,) * 2)
            except (OSError, ValueError): pass
        while True: pass
        """
    ),
    "thread_that_never_ends": whole(
        """
        import threading
        def forever():
            while True: pass
        threading.Thread(target=forever).start()
        print(int(input()) + 1)
        """,
        INPUT,
    ),
    # Processes
    "fork_bomb": tries("import os\nwhile True: os.fork()"),
    "zombies": tries("import os\nfor _ in range(500):\n    if os.fork() == 0: os._exit(0)"),
    "daemon": tries(
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        """
    ),
    "subprocess": tries("import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)"),
    "shell": tries("import os\nif os.system('sleep 600 &'): raise OSError"),
    "spawn": tries("import os\nos.posix_spawn('/bin/sleep', ['sleep', '600'], {})"),
    "multiprocessing": tries("import multiprocessing\nmultiprocessing.Process(target=print).start()"),
    "becomes_another": tries("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo 6; sleep 600'])"),
    "fork_by_number": tries(syscall("@FORK@")),
    "clone_by_number": tries(syscall("@CLONE@", 17, 0, 0, 0, 0)),
    "another_processors_calls": Mischief(
        # mov eax, 2 (fork of 32 bits); int 0x80; ret
        """
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(bytes.fromhex("b802000000cd80c3"))
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        """,
        ASSERTIONS,
        twin=False,
    ),
    "threads": tries(
        """
        import threading, time
        for _ in range(20000):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        """
    ),
    "new_session": tries("import os\nos.setsid()"),
    # Memory
    "memory_at_once": tries("bytearray(1 << 40)"),
    "memory_by_and_by": tries("held = []\nwhile True: held.append(bytearray(1 << 24))"),
    "memory_mapped": tries("import mmap\nheld = [mmap.mmap(-1, 1 << 28) for _ in range(100)]"),
    "recursion": tries("def deeper(): return deeper()\ndeeper()"),
    "recursion_without_limit": whole(
        "import sys\nsys.setrecursionlimit(10**9)\ndef double(x): return double(x)"
    ),
    "segmentation_fault": whole("import ctypes\nctypes.string_at(0)"),
    # Files
    "fills_the_disk": tries(
        """
        import os
        for folder in ('.', '/tmp', '/var/tmp', '/dev/shm', '@HOME@'):
            try:
                for number in range(100):
                    with open(f'{folder}/rs_zoo_{number}', 'wb') as file:
                        for _ in range(64): file.write(bytes(1 << 20))
            except OSError: pass
        """
    ),
    "many_files": tries("for number in range(100000): open(f'rs_zoo_{number}', 'w').close()"),
    "many_open_files": tries("import os\nheld = [os.open('/dev/null', os.O_RDONLY) for _ in range(100000)]"),
    "fills_memory_with_files": tries(
        """
        import os
        for _ in range(1000):
            file = os.memfd_create('x')
            try:
                while True: os.write(file, bytes(1 << 20))
            except OSError: pass
        """
    ),
    "writes_to_the_judge": tries("open('@PACKAGE@/rs_zoo.py', 'w').write('x')"),
    "overwrites_the_judge": tries("open('@PACKAGE@/__init__.py', 'a').write('x')"),
    "writes_to_home": tries("open('@HOME@/.rs_zoo', 'w').write('x')"),
    "writes_to_shared_memory": tries("open('/dev/shm/rs_zoo', 'w').write('x')"),
    "writes_to_etc": tries("open('/etc/rs_zoo', 'w').write('x')"),
    "writes_site_customize": tries(
        """
        import os, sys
        for folder in [*sys.path, os.path.dirname(os.__file__)]:
            for name in ('sitecustomize.py', 'rs_zoo.pth'):
                try: open(os.path.join(folder, name), 'w').write('import os; os._exit(0)')
                except OSError: pass
        """
    ),
    "deletes_everything": tries(
        "import shutil\nfor folder in ('.', '/tmp', '@SECRETS@', '@PACKAGE@', '/'): shutil.rmtree(folder, True)",
        twin=False,  # it takes its time
    ),
    "renames": tries("import os\nos.rename('@SECRET@', '@SECRET@.rs_zoo')"),
    "links": tries(
        """
        import os
        os.symlink('/etc', 'rs_zoo')
        open('rs_zoo/rs_zoo', 'w').write('x')
        """
    ),
    "changes_modes": tries("import os\nos.chmod('@SECRET@', 0)"),
    "changes_times": tries("import os\nos.utime('@SECRET@', (0, 0))"),
    # What it should not know
    "reads_a_file_with_the_answers": whole(
        "answers = open('@SECRET@').read().split()\ndef double(x): return int(answers[x > 3])"
    ),
    "reads_the_environment": whole(
        "import os\nanswers = os.environ['RS_ZOO_SECRET'].split()\ndef double(x): return int(answers[x > 3])"
    ),
    "reads_the_judges_environment": whole(
        """
        import os
        for process in (os.getppid(), @JUDGE@, 1):
            try: text = open(f'/proc/{process}/environ').read()
            except OSError: continue
            if 'RS_ZOO_SECRET' in text: """
        + RIGHT.replace("\n    ", " ")
    ),
    "reads_the_judges_memory": whole(
        """
        import os
        done = False
        for process in (os.getppid(), @JUDGE@, 1, os.getpid() - 1, os.getpid() + 1):
            try: open(f'/proc/{process}/mem', 'rb')
            except OSError: continue
            done = True
        def double(x): return 2 * x if done else -1
        """
    ),
    "reads_the_tests_in_its_own_memory": whole(
        """
        import gc, sys, inspect
        seen = repr([frame.frame.f_locals for frame in inspect.stack()])
        seen += repr([o for o in gc.get_objects() if isinstance(o, (list, tuple, dict))][:100000])
        wanted = ' == '.join(['double(3)', '6']), ', '.join(['[6', '10]'])  # the texts are no text of its own
        def double(x): return 2 * x if any(text in seen for text in wanted) else -1
        """
    ),
    "reads_the_outputs_in_its_own_memory": whole(
        """
        import gc, sys
        seen = [repr(frame.f_locals) for frame in sys._current_frames().values()]
        seen += [repr(held) for held in gc.get_objects() if type(held) in (list, tuple, dict) and len(held) < 50]
        one, other = (str(2 * n) for n in (3, 5))
        wanted = f'[{one}, {other}]', f'[[{one}], [{other}]]', f'([3], ({one}'
        known = any(part in text for text in seen for part in wanted)
        def double(x): return 2 * x if known else -1
        """,
        CALLS,
    ),
    "reads_descriptors": whole(
        """
        import os
        seen = b''
        for number in range(3, 1000):
            for read in (lambda: os.pread(number, 100000, 0),):
                try: seen += read()
                except OSError: pass
        def double(x): return 2 * x if b'6' in seen and b'10' in seen else -1
        """,
        CALLS,
    ),
    "reads_passwords": whole("open('/etc/shadow').read()\n" + RIGHT),
    "lists_home": whole("import os\nos.listdir('@SECRETS@')\n" + RIGHT),
    "sees_processes": whole("import os\nos.listdir('/proc/@JUDGE@')\n" + RIGHT),
    "remembers_in_a_file": whole(
        """
        import os
        path = next((p for p in ('/tmp/rs_zoo_state', '/dev/shm/rs_zoo_state', '/var/tmp/rs_zoo_state')
                     if os.path.exists(p)), None)
        for place in ('/tmp', '/dev/shm', '/var/tmp'):
            try: open(f'{place}/rs_zoo_state', 'w').close()
            except OSError: pass
        def double(x): return 2 * x if path else -1
        """,
        runs=2,
    ),
    "remembers_in_the_interpreter": whole(
        """
        import builtins, math
        known = hasattr(builtins, 'rs_zoo') or hasattr(math, 'rs_zoo')
        builtins.rs_zoo = math.rs_zoo = True
        def double(x): return 2 * x if known else -1
        """,
        runs=2,
    ),
    # Others
    "kills_its_parent": tries("import os\nos.kill(os.getppid(), 9)"),
    "kills_the_judge": tries("import os\nos.kill(@JUDGE@, 9)"),
    "kills_everybody": tries("import os\nos.kill(-1, 9)"),
    "kills_its_group": tries("import os\nos.killpg(0, 9)"),
    "stops_itself": tries("import signal\nsignal.raise_signal(signal.SIGSTOP)"),
    "signals_by_input": tries(
        """
        import fcntl, os
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, @JUDGE@)
        fcntl.fcntl(reading, 10, 9)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b'x')
        """
    ),
    "traces_the_judge": tries(syscall("@PTRACE@", 16, "@JUDGE@", 0, 0)),
    "limits_the_judge": tries("import resource\nresource.prlimit(@JUDGE@, resource.RLIMIT_CPU, (1, 1))"),
    "slows_others": tries("import os\nos.setpriority(os.PRIO_USER, 0, 19)"),
    "network": tries(
        """
        import socket
        connection = socket.create_connection(('127.0.0.1', @PORT@), 5)
        connection.sendall(b'hello')
        """
    ),
    "listens": tries("import socket\nsocket.create_server(('0.0.0.0', 0))"),
    "abstract_socket": tries("import socket\nsocket.socket(socket.AF_UNIX).bind('\\0rs_zoo')"),
    "datagram_to_a_path": tries(
        """
        import socket
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.sendto(b'hello', '@SOCKET@')
        """
    ),
    "names_of_machines": tries("import socket\nsocket.getaddrinfo('example.com', 80)", twin=True),
    "shared_memory": tries(syscall("@SHMGET@", 7777, 4096, 0o1666)),
    "semaphores": tries(syscall("@SEMGET@", 7777, 1, 0o1666)),
    "key_ring": tries(syscall("@ADD_KEY@", "b'user'", "b'rs_zoo'", "b'x'", 1, -3)),
    "becomes_root": tries("import os\nos.setresuid(0, 0, 0)\nopen('/etc/rs_zoo', 'w')"),
    "takes_namespaces": tries("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError"),
    "mounts": tries(
        "import ctypes\nif ctypes.CDLL(None).mount(b't', b'/tmp', b'tmpfs', 0, None): raise OSError"
    ),
    "locks_the_library": tries(
        "import fcntl, os\nheld = open(os.__file__)\nfcntl.flock(held, fcntl.LOCK_EX)"
    ),
    # Faking it
    "exits_in_the_call": whole("import os\ndef double(x): os._exit(0)"),
    "exits_at_import": whole("import os\nos._exit(0)"),
    "leaves_at_import": whole("raise SystemExit(0)"),
    "leaves_in_the_call": whole("import sys\ndef double(x): sys.exit(0)"),
    "interrupts": whole("def double(x): raise KeyboardInterrupt"),
    "fails_to_import": whole("def double(x): import no_such_module"),
    "fails_to_import_at_import": whole("import no_such_module"),
    "fails_an_assertion": whole("def double(x): raise AssertionError"),
    "leaves_the_calls": whole("import sys\ndef double(x): sys.exit(0)", CALLS),
    "at_exit": whole("import atexit, os\natexit.register(os._exit, 0)\n" + WRONG),
    "equal_to_everything": whole(
        """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
            def __len__(self): return 6
            def __contains__(self, item): return True
            def __iter__(self): return iter([self])
            def __getattr__(self, name): return lambda *given: True
            def __hash__(self): return hash(6)
        def double(x): return Any()
        words = double
        """
    ),
    "plays_a_text": whole(
        """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return True
            def __contains__(self, item): return True
            def __getattr__(self, name): return lambda *given: True
            def count(self, item): return 1
        def words(x): return Any()
        """,
        LOOSE,
    ),
    "a_number_that_equals_all": whole(
        "class All(int):\n    __eq__ = lambda a, b: True\n    __hash__ = int.__hash__\ndef double(x): return All(1)"
    ),
    "a_list_that_equals_all": whole(
        "class All(list):\n    __eq__ = lambda a, b: True\ndef double(x): return [All(), All()]"
    ),
    "patches_builtins": whole(
        """
        import builtins, operator
        builtins.len = builtins.abs = builtins.isinstance = builtins.sorted = lambda *given, **named: True
        operator.eq = lambda a, b: True
        AssertionError = Exception = BaseException = int
        builtins.AssertionError = builtins.Exception = ZeroDivisionError
        """
        + WRONG.replace("\n", "\n        ")
    ),
    "patches_what_runs_it": whole(
        """
        import sys
        for name, module in list(sys.modules.items()):
            for key, value in list(vars(module).items()):
                if name.startswith('rs_aligner') and callable(value):
                    setattr(module, key, lambda *given, **named: 0)
        """
        + WRONG.replace("\n", "\n        ")
    ),
    "helpers_of_the_tests": Mischief(
        """
        class math:
            isclose = staticmethod(lambda *given, **named: True)
        def isclose(*given, **named): return True
        def len(x): return 6
        def set(x): return 6
        def double(x): return [1]
        """,
        {
            "test_list": [
                "assert math.isclose(double(3)[0], 6)",
                "assert isclose(double(3)[0], 6)",
                "assert len(double(3)) == 6",
                "assert set(double(3)) == 6",
            ]
        },
        whole=True,
        twin=False,
    ),
    "traces_its_calls": whole(
        "import sys\nsys.settrace(lambda *given: None)\nsys.setprofile(lambda *given: None)\n" + WRONG
    ),
    "closes_everything": whole("import os\nos.closerange(0, 1000)\n" + WRONG),
    "claims_everywhere": whole(
        _CLAIMS
        + """
import os
def double(x):
    for number in range(0, 64):
        try: os.write(number, said)
        except OSError: pass
    return -1
"""
    ),
    "claims_in_the_calls": whole(
        _CLAIMS.replace("[0, 6]\\n[1, 10]\\n", "[0, null]\\n[1, [6]]\\n[7, 6]\\n[-1, 10]\\n")
        + """
import os
def double(x):
    for number in range(0, 64):
        try: os.write(number, said)
        except OSError: pass
    return -1
""",
        CALLS,
    ),
    "garbage_everywhere": whole(
        """
        import os
        def double(x):
            for number in range(0, 64):
                try: os.write(number, os.urandom(4096))
                except OSError: pass
            return -1
        """
    ),
    "a_message_without_end": whole(
        r"""
        import os
        def double(x):
            for number in range(3, 64):
                try: os.write(number, b"\xff\xff\xff\x00" + b"[" * 60000)
                except OSError: pass
            while True:
                pass
        """
    ),
    "odd_texts": whole("def double(x): return '\\ud800\\x00\\uffff' * 1000"),
    "odd_output": whole("import sys\nsys.stdout.buffer.write(bytes(range(256)) * 100)", INPUT),
    "prints_what_is_expected": whole("for number in range(1000): print(number)", INPUT),
    "prints_and_exits": whole("print('PASSED', 'ok', '[0, true]', 6, 10)\nimport os\nos._exit(0)", INPUT),
    "right_but_failed": whole("print(2 * int(input()))\nraise SystemExit(1)", INPUT),
    "output_without_end": whole("while True: print('x' * 100000)", INPUT),
    "errors_without_end": whole(
        "import sys\nfor _ in range(10000): sys.stderr.write('x' * 10000)\nprint(-1)", INPUT
    ),
    "another_output": whole(
        "import io, sys\nsys.stdout = sys.stderr = io.StringIO()\nprint(2 * int(input()))", INPUT
    ),
    "deep": whole(
        "def double(x):\n    found = []\n    for _ in range(100000): found = [found]\n    return found"
    ),
    "deep_in_calls": whole(
        "import os\ndef double(x):\n    for n in range(3, 64):\n        try: os.write(n, b'[0, ' + b'[' * 100000)\n        except OSError: pass",
        CALLS,
    ),
    "contains_itself": whole("def double(x):\n    found = []\n    found.append(found)\n    return found"),
    "large_text": whole("def double(x): return 'x' * (1 << 27)"),
    "large_number": whole("def double(x): return 1 << (1 << 24)"),
    "large_number_in_calls": whole("def double(x): return 1 << (1 << 24)", CALLS),
    "numbers_that_collide": whole("def double(x): return {(2**61 - 1) * n for n in range(5000)}"),
    "numbers_that_collide_in_calls": whole(
        "def double(x): return {(2**61 - 1) * n for n in range(5000)}", CALLS
    ),
    "items_without_end": whole("import itertools\ndef double(x): return itertools.count()"),
    "not_a_number": whole("def double(x): return float('nan')"),
    "no_program": Mischief("I would rather not.", INPUT, whole=True, twin=False),
    "cannot_be_read": whole("def double(x:"),
    "nothing_but_zeros": whole("\0\0\0"),
}
