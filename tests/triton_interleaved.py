"""Runs the programs of an interpreted Triton launch side by side, switching at random.

A program is a thread; one runs at a time, and hands over before every atomic. ``slots`` programs
are under way at once, as on a GPU with so much room; the next one starts when one ends.
"""

import contextlib
import inspect
import random
import threading

from triton.runtime import interpreter

MOST_SWITCHES = 200_000  # of a launch; a deadlock spins for ever


class Interleaved:
    """Stands in for the interpreted function; runs all programs when the last one is there."""

    def __init__(self, fn, programs, slots, seed):
        self.fn, self.programs = fn, programs
        self.slots, self.random = slots, random.Random(seed)
        self.waiting, self.under_way, self.errors = [], [], []
        self.switches = 0
        self.__name__, self.__globals__ = fn.__name__, fn.__globals__
        self.__signature__ = inspect.signature(fn)

    def __call__(self, **arguments):
        self.waiting.append((interpreter.interpreter_builder.grid_idx, arguments))
        if len(self.waiting) == self.programs:
            self.run_all()

    def run_all(self):
        self.random.shuffle(self.waiting)
        self.done = threading.Event()
        original = interpreter.interpreter_builder.create_atomic_rmw

        def atomic(*arguments):
            self.switch()
            return original(*arguments)

        interpreter.interpreter_builder.create_atomic_rmw = atomic
        try:
            self.start_more()
            self.go_on()
            self.done.wait()
        finally:
            del interpreter.interpreter_builder.create_atomic_rmw
        if self.errors:
            raise self.errors[0]

    def start_more(self):
        while self.waiting and len(self.under_way) < self.slots:
            program = threading.Thread(target=self.run, args=self.waiting.pop(), daemon=True)
            program.turn = threading.Semaphore(0)
            self.under_way.append(program)
            program.start()

    def go_on(self):
        self.random.choice(self.under_way).turn.release()

    def switch(self):
        self.switches += 1
        if self.errors or self.switches > MOST_SWITCHES:
            raise RuntimeError("the programs wait for one another")
        self.go_on()
        threading.current_thread().turn.acquire()

    def run(self, index, arguments):
        me = threading.current_thread()
        me.turn.acquire()
        interpreter.interpreter_builder.set_grid_idx(*index)  # asked for before the first atomic
        try:
            self.fn(**arguments)
        except BaseException as error:
            self.errors.append(error)
        self.under_way.remove(me)
        self.start_more()
        if self.under_way:
            self.go_on()
        else:
            self.done.set()


@contextlib.contextmanager
def interleaved(slots, seed):
    """Every launch inside runs so. Gives the list of launches, each with its ``switches``."""
    launches = []

    class Executor(interpreter.GridExecutor):
        def __init__(self, fn, arg_names, grid, *rest):
            super().__init__(fn, arg_names, grid, *rest)
            self.fn = Interleaved(fn, grid[0], slots, seed)
            self.fn.__annotations__ = fn.__annotations__
            launches.append(self.fn)

    before = interpreter.GridExecutor
    interpreter.GridExecutor = Executor
    try:
        yield launches
    finally:
        interpreter.GridExecutor = before
