"""What runs a row's tests, in a process apart from the program's.

The program's functions are stand-ins here: a call goes over a pipe to the program's process and what comes
back is plain data, which is compared here. So a program cannot see what is expected, nor end the tests, nor
put an object that is equal to everything into them.

What tests may not use of a program: its signature and source, `isinstance` by its classes, attributes that
begin with two underscores. They are in a jail as well: tests come from files that somebody wrote.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import unittest
from collections.abc import Callable
from typing import Any

from rs_aligner.sandbox.link import Link, ProgramEnded
from rs_aligner.sandbox.reading import called, free_names, from_solution, prepared, test_functions
from rs_aligner.sandbox.remote import Remotes, is_programs

_PASSED, _FAILED = "@passed", "@failed"  # no program text has such names


def run_tests(tests: dict[str, Any], link: Link, verdict: int) -> int:
    """Run tests, and write down how each came out.

    Args:
        tests: `setup`, code that comes first; `prompt`, code with helpers of the task, or ""; `entry`, the
            name of the function that is asked for, or ""; and `cases`, a list of codes each of which is a
            test, or `code`, whose assertions are the tests, or its functions `test_...` and such methods of
            `unittest` classes if it has any.
        link: to the program.
        verdict: a descriptor; a line is `[number, passed]` in JSON, at the end `["end", problem]`.
    """

    def say(line: list[Any]) -> None:
        os.write(verdict, json.dumps(line).encode() + b"\n")

    try:
        suite = _Suite(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        say(["unreadable", str(error)])
        return 0
    say(["number", suite.number])
    problem = ""
    try:
        names = Remotes(link).names(suite.wanted)
        suite.run(names, link, say)
    except ImportError as error:
        if is_programs(error):
            problem = type(error).__name__
        else:  # no program could pass
            say(["unreadable", f"{error}; judge.kwargs.python names an interpreter that has it"])
    except (Exception, SystemExit, ProgramEnded) as error:
        problem = type(error).__name__
    say(["end", problem])
    return 0


class _Suite:
    """Tests as code."""

    def __init__(self, tests: dict[str, Any]) -> None:
        self._entry = tests["entry"]
        self._cases: list[str] | None = tests["cases"]
        self._setup = [prepared(text) for text in (tests["prompt"], tests["setup"])]
        if self._entry:  # what is asked for comes from the program, never from its prompt
            self._setup[0].body = [
                part for part in self._setup[0].body if getattr(part, "name", "") != self._entry
            ]
        texts = tests["cases"] if self._cases is not None else [tests["code"]]
        self._trees = [prepared(text) for text in texts]
        codes = [ast.unparse(tree) for tree in (*self._setup, *self._trees)]
        imported = [name for text in (*texts, tests["setup"]) for name in from_solution(text)]
        names = {*free_names(codes), *imported, *([self._entry] if self._entry else [])}
        are_called = {self._entry}.union(*map(called, (*self._setup, *self._trees)))
        self.wanted = {name: name in are_called for name in sorted(names)}
        self._functions = [] if self._cases is not None else list(test_functions(self._trees[0]))
        self.number = len(self._functions) or len(self._trees)
        if self._cases is None and not self._functions:
            marked = _Marked()
            self._trees = [ast.fix_missing_locations(marked.visit(tree)) for tree in self._trees]
            self.number = marked.number
            if not self.number:
                raise ValueError("there is no assertion and no function test_... in them")

    def run(self, names: dict[str, Any], link: Link, say: Callable[[list[Any]], None]) -> None:
        """Run all of them in one namespace."""
        said: dict[int, bool] = {}

        def mark(number: int, passed: bool) -> None:
            """Say it once: an assertion in a loop has passed if it passed each time."""
            passed &= not link.is_broken  # a test may have taken the program's end for something else
            if said.get(number, True) and said.get(number) != passed:
                said[number] = passed
                say([number, passed])

        space: dict[str, Any] = {"__name__": "tests", **names}
        space[_PASSED] = lambda number: mark(number, True)
        space[_FAILED] = lambda number: mark(number, False)
        for tree in self._setup:
            exec(compile(tree, "setup", "exec"), space)
        if self._cases is not None:
            for number, tree in enumerate(self._trees):
                code = compile(tree, "test", "exec")
                mark(number, _passes(functools.partial(exec, code, space)))
            return
        exec(compile(self._trees[0], "tests", "exec"), space)
        for number, name in enumerate(self._functions):
            mark(number, _passes(functools.partial(_method, space, name) if "." in name else space[name]))
        if self._entry and not self._functions and callable(space.get("check")):
            space["check"](space[self._entry])
        if link.is_broken:
            raise ProgramEnded


class _Marked(ast.NodeTransformer):
    """Assertions that say how they came out, and let what follows go on."""

    def __init__(self) -> None:
        self.number = 0

    def visit_Assert(self, node: ast.Assert) -> ast.Try:
        number, self.number = self.number, self.number + 1
        passed, failed = (
            ast.Expr(ast.Call(ast.Name(name, ast.Load()), [ast.Constant(number)], []))
            for name in (_PASSED, _FAILED)
        )
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [failed])
        return ast.copy_location(ast.Try([node], [handler], [passed], []), node)


def _method(space: dict[str, Any], name: str) -> None:
    """Run a method of a `unittest` class, with what the class has around it.

    Raises:
        AssertionError: it failed, or was left out.
    """
    class_name, _, method = name.partition(".")
    result = unittest.TestResult()
    unittest.TestSuite([space[class_name](method)]).run(result)
    if not result.wasSuccessful() or result.skipped:
        raise AssertionError


def _passes(test: Callable[[], object]) -> bool:
    """Whether a test goes through.

    Raises:
        ImportError: the test itself lacks something.
    """
    try:
        test()
    except ImportError as error:
        if not is_programs(error):
            raise
        return False
    except (Exception, SystemExit):
        return False
    return True
