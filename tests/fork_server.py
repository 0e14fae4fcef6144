"""A Python that has imported what commands need, and forks for each; see `forked.py`. Nothing else may happen in it.

A command is run as the interpreter would run it: from the end of this file, so that exceptions, signals, exit status and
what is registered for the exit are the interpreter's.
"""

import gc
import json
import os
import runpy
import signal
import socket
import struct
import sys
import types
from importlib import import_module

IMPORTS = (
    "matplotlib.backends.backend_agg",
    "subfit.ablation.runner",
    "subfit.api",
    "subfit.benchmarking.benchmark",
    "subfit.finetuning.fine_tune",
    *(f"subfit.cli.{name}" for name in ("main", "ablate", "benchmark", "compress", "evaluate", "export", "list", "report")),
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
)


def serve(requests: socket.socket) -> dict:
    """Forks for each request; returns in the process that becomes the command, with what was requested."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 2**20, 4)
        while ended():
            ...
        if not message:
            os._exit(0)  # whoever started this one has ended
        if os.fork() == 0:
            *streams, status = descriptors
            command = os.fork()
            if command == 0:
                os.setsid()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                requests.close()
                for descriptor in descriptors:
                    os.close(descriptor)
                return json.loads(message)
            for stream in streams:
                os.close(stream)
            os.write(status, struct.pack("i", command))
            os.write(status, struct.pack("i", os.waitpid(command, 0)[1]))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def ended() -> bool:
    """Whether a process that reports an exit status has ended, which is then forgotten."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def become(request: dict) -> None:
    """Sets what a process of its own would start with."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell in the background sets
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    import_module("numpy").random.seed()  # by the system, as at a start


for name in IMPORTS:
    import_module(name)
assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread, which a fork would not take along"
gc.freeze()  # what the collector never visits stays in shared memory; and processes end sooner
request = serve(socket.socket(fileno=int(sys.argv[1])))
become(request)
program, *arguments = request["command"]
if program != sys.executable:
    sys.argv, sys.path[0] = request["command"], os.path.dirname(program)
    runpy.run_path(program, run_name="__main__")
elif arguments[0] == "-m":
    sys.argv, sys.path[0] = arguments[1:], os.getcwd()
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
else:
    sys.argv, sys.path[0] = [arguments[0], *arguments[2:]], ""
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(compile(arguments[1], "<string>", "exec"), vars(module))
