"""Which mutants there are: the core, the tests of each of its modules, and a sample drawn with a fixed seed.

Left out on purpose: running them (`mutants.py`).
"""

from __future__ import annotations

import ast
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rs_aligner"

CONFIG = ("tests/config/test_plan.py", "tests/config/test_load.py", "tests/config/test_pools.py")
CONFIG += ("tests/config/test_rft.py", "tests/config/test_objective.py", "tests/config/test_selection.py")
CONFIG += ("tests/config/test_rs.py", "tests/config/test_training.py", "tests/config/test_remote.py")
CONFIG += ("tests/config/test_serve_reward.py", "tests/config/test_aliases.py")
CONFIG += ("tests/config/test_generate.py", "tests/config/test_upstream.py", "tests/config/test_recipes.py")
SELECTORS = ("tests/config/test_selection.py", *CONFIG, "tests/selection/test_properties.py")
LOOP = ("tests/trainers/test_rs.py", "tests/trainers/test_pool.py", "tests/proof/test_watched.py")
CLIENT = (
    "tests/remote/test_asking.py",
    "tests/reward/client/test_asking_again.py",
    "tests/reward/client/test_client.py",
    "tests/reward/client/test_faults.py",
)
RECORDS = "tests/test_records.py"  # a test for each module with records, named after it
DECODER = ("tests/generation",)
SELECTION = tuple(
    f"tests/selection/test_{name}.py"
    for name in ("bars", "chain", "distinct", "filters", "topk", "properties")
)
FORMS = tuple(f"tests/answers/test_{name}.py" for name in ("values", "forms", "verdict", "mathematics"))
NUMBERS = tuple(f"tests/answers/test_{name}.py" for name in ("numbers", "verdict", "choices", "mathematics"))
NUMBERS += ("tests/reward/judges/test_verifiers.py",)

TESTS: dict[str, tuple[str, ...]] = {
    "selection/*.py": SELECTION,
    "loss.py": ("tests/test_loss.py", "tests/test_objective_losses.py", "tests/test_pairs.py"),
    "objective/rows.py": ("tests/objective/test_rows.py", *LOOP),
    "objective/terms/*.py": ("tests/objective/test_terms.py",),
    "batching.py": ("tests/test_batching.py",),
    "schedule.py": ("tests/test_schedule.py",),
    "config/chain.py": SELECTORS,
    "config/sele*.py": SELECTORS,
    "config/template.py": ("tests/config/test_template.py",),
    "config/keys.py": ("tests/config/test_page.py", *CONFIG),
    "config/tree.py": ("tests/test_api.py", *CONFIG),
    "config/exp_manager.py": ("tests/loggers/test_sinks.py", *CONFIG),
    "config/nemo_trainings.py": ("tests/config/test_nemo_scripts.py", *CONFIG),
    "config/*.py": CONFIG,
    "rollout.py": (
        "tests/test_rollout.py",
        "tests/proof/test_chance.py",
        "tests/record/test_metrics.py",
        "tests/record/test_ledger.py",
        *LOOP,
    ),
    "record/ledger.py": (
        "tests/record/test_ledger.py",
        "tests/data/test_scored.py",
        "tests/trainers/test_pool.py",
        "tests/test_precision.py",
    ),
    "record/metrics.py": ("tests/record/test_metrics.py", "tests/record/test_run.py", *LOOP),
    "proof/chance.py": ("tests/proof/test_chance.py", "tests/record/test_metrics.py"),
    "proof/estimates.py": ("tests/proof/test_estimates.py", "tests/proof/test_chance.py"),
    "proof/watched.py": ("tests/proof/test_watched.py", *LOOP),
    "address.py": ("tests/test_address.py",),
    "trainers/pool.py": LOOP,
    "trainers/collect.py": LOOP,
    "trainers/rs.py": LOOP,
    "trainers/learner.py": LOOP,
    "trainers/held_out.py": LOOP,
    "trainers/failures.py": ("tests/trainers/test_failures.py", *LOOP),
    "trainers/round.py": ("tests/trainers/test_round.py", *LOOP),
    "trainers/pace.py": ("tests/trainers/test_pace.py", "tests/record/test_run.py", *LOOP),
    "trainers/measure.py": ("tests/trainers/test_measure.py", *LOOP),
    "record/run.py": ("tests/record/test_run.py", "tests/trainers/test_pace.py", *LOOP),
    **{f"remote/{name}.py": CLIENT for name in ("asking", "endpoints", "queue", "retry")},
    "reward/protocol.py": (
        "tests/reward/test_protocol.py",
        "tests/reward/client/test_malformed_answers.py",
        *CLIENT,
    ),
    "answers/choices.py": ("tests/answers/test_choices.py",),
    **{f"answers/{name}.py": FORMS for name in ("brackets", "expressions", "field", "forms", "library")},
    **{f"answers/{name}.py": FORMS for name in ("reading", "texts", "tokens", "units", "values")},
    "answers/*.py": NUMBERS,
    "policy/batches.py": ("tests/policy/test_batches.py", "tests/policy/test_training.py"),
    "generation/sampling.py": ("tests/generation/test_sampling.py", *DECODER),
    "generation/text.py": ("tests/generation/test_endings.py", *DECODER),
    "generation/rows.py": DECODER,
    "generation/waves.py": DECODER,
}
"""By module: the fast tests that are to kill its mutants, behind the file that is named as the module."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        module: its path below the package.
        line, column: where.
        operator, occurrence: Cosmic Ray's names for it.
        before, after: the line without and with it, without white space around.
    """

    module: str
    line: int
    column: int
    operator: str
    occurrence: int
    before: str
    after: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What stays the same when lines move."""
        return self.module, self.before, self.after


Places = dict[tuple[int, int], list[tuple[str, int]]]
"""By line and column of a module: the operators that change something there, and their count of it."""


def modules() -> list[str]:
    """The core, in alphabetical order."""
    files = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return [file for file in files if not file.endswith("__init__.py") and tests_of(file)]


def tests_of(module: str) -> tuple[str, ...]:
    """The tests that are to kill a module's mutants; none for one that is not of the core."""
    found = next((tests for pattern, tests in TESTS.items() if fnmatch(module, pattern)), ())
    path = Path(module)
    nearest = (Path("tests") / path.parent / f"test_{path.stem}.py").as_posix()
    tests = tuple(dict.fromkeys(test for test in (nearest, *found) if found and (ROOT / test).exists()))
    if tests and f'"{module}"' in (ROOT / RECORDS).read_text(encoding="utf-8"):
        tests += (f"{RECORDS}::test_records_are_lean_and_stay_as_they_are[{module}]",)
    return tests


def sample(number: int, seed: int, only: Sequence[str] = ("*",)) -> list[Mutant]:
    """So many mutants of the core, of each module by its lines, one at least; those of some modules only."""
    lines = {
        module: sum(bool(line.strip()) for line in source_of(module).splitlines()) for module in modules()
    }
    wanted = {module: max(1.0, number * each / sum(lines.values())) for module, each in lines.items()}
    # The largest remainders are rounded up, so that the numbers add up.
    numbers = {module: int(share) for module, share in wanted.items()}
    for module in sorted(wanted, key=lambda module: numbers[module] - wanted[module]):
        if sum(numbers.values()) < number:
            numbers[module] += 1
    asked = [module for module in numbers if any(fnmatch(module, pattern) for pattern in only)]
    return [one for module in asked for one in _drawn(module, _places(module), numbers[module], seed)]


def _drawn(module: str, places: Places, number: int, seed: int) -> list[Mutant]:
    """So many mutants of a module, in the order of its lines; what is no Python is passed over."""
    chance, found = random.Random(f"{seed} {module}"), []  # does not depend on the other modules' code
    for place in chance.sample(sorted(places), len(places)):
        if len(found) == number:
            break
        for name, occurrence in chance.sample(places[place], len(places[place])):
            mutant = _made(module, place, name, occurrence)
            if mutant is not None:
                found.append(mutant)
                break
    return sorted(found, key=lambda mutant: (mutant.line, mutant.column))


def _places(module: str) -> Places:
    """By line and column: the operators that change something there, and their count of it."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = (PACKAGE / module).read_text(encoding="utf-8")
    nodes, annotated = list(ast_nodes(get_ast(source))), list(_annotations(ast.parse(source)))
    places: Places = defaultdict(list)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        spots = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(spots):
            if not any(begin <= start < end for begin, end in annotated):
                places[start].append((name, occurrence))
    return places


def _annotations(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end: line and column."""
    for node in ast.walk(tree):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def _made(module: str, place: tuple[int, int], operator: str, occurrence: int) -> Mutant | None:
    source = mutated(module, operator, occurrence)
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, module, "exec", dont_inherit=True)
    except SyntaxError:  # such as another operator in place of the stars of `**kwargs`
        return None
    before, after = source_of(module).splitlines(), source.splitlines()
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    at = changed[0] if changed else place[0] - 1
    return Mutant(module, *place, operator, occurrence, before[at].strip(), after[at].strip())


def source_of(module: str) -> str:
    return (PACKAGE / module).read_text(encoding="utf-8")


def mutated(module: str, operator: str, occurrence: int) -> str:
    """The module's source with one change."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    code = mutate_code(source_of(module), get_operator(operator)(), occurrence)
    assert code is not None, f"{operator} has no place {occurrence} in {module}"
    return str(code)
