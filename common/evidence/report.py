"""Tables, paired differences and the figure of the evidence, from the results that are kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from common.evidence.figure import draw_evidence, draw_kept_shares
from common.evidence.plan import Study, permuted_name, shown_rows
from common.files import write_bytes
from common.results.files import Result, load_result, lookup, mean_of_live
from common.results.plot_style import save
from common.results.table import NONE, Table, markdown_table

SUMMARY, FIGURE, KEPT_FIGURE = "summary.md", "evidence.png", "kept_shares.png"
SHARE = 0.95
COMMON = (
    "difference = in overall accuracy to the first row with the same seeds (same data and order), "
    f"with its {SHARE:.0%} confidence interval (t, paired). permuted = the decisions of the row "
    "above, given to other questions of the validation part. Settings were chosen with other seeds "
    "than those that are shown."
)
OVERVIEW_LEGEND = (
    "Accuracy on validation questions, half of them in the old words and half in the new ones, in "
    "percent, of the epoch that was best on held-out training images; mean ± sample standard "
    f"deviation over seeds. {COMMON}"
)
LEGEND = (
    "Accuracy on validation questions in percent, of the epoch that was best on held-out training "
    "images; mean ± sample standard deviation over seeds. kept = questions in the old words, "
    "learned = questions in the dialect. finetuned = share of live decisions that chose the "
    "finetuned part, of the validation questions of that kind. kept share = of the layers, of live "
    f"ones where a policy decides. {COMMON}"
)
Found = dict[str, dict[int, Result]]  # by name of the row and seed


def read_study(study: Study, out: Path) -> Found:
    """The kept results of a study; a permuted row beside each that has one."""
    found: Found = {}
    for row in study.rows:
        shares = {row.name: row.kept} | {pruned.name: pruned.kept for pruned in row.pruned}
        for name, kept in shares.items():
            if results := _read_row(out / study.name / name, study.seeds, kept):
                found[name] = results
        results = found.get(row.name, {})
        if row.permuted and (permuted := _permuted(results)):
            found[permuted_name(row)] = permuted
    return found


def _read_row(folder: Path, seeds: Sequence[int], kept: float | None) -> dict[int, Result]:
    """The kept results of a row by seed, with the share of the layers that are left."""
    files = {int(path.stem.removeprefix("seed_")): path for path in folder.glob("seed_*.json")}
    return {
        seed: load_result(path) | ({} if kept is None else {"decisions": {"mean_live": kept}})
        for seed, path in sorted(files.items())
        if seed in seeds
    }


def _permuted(results: Mapping[int, Result]) -> dict[int, Result]:
    return {
        seed: result | {"accuracy": {"val": values}}
        for seed, result in results.items()
        if (values := lookup(result, "accuracy.val_permuted")) is not None
    }


def publish(out: Path, chosen: Mapping[str, Study]) -> list[Table]:
    """Write the tables and the figure of all studies that have results.

    Args:
        out: folder of the kept results.
        chosen: the studies by name.

    Returns:
        The tables.
    """
    found = {name: (study, read_study(study, out)) for name, study in chosen.items()}
    found = {name: pair for name, pair in found.items() if pair[1]}
    tables = [study_table(study, results) for study, results in found.values()]
    if tables:
        for name, table in zip(found, tables, strict=True):
            write_bytes(out / name / SUMMARY, f"{markdown_table(table)}\n".encode())
        text = "\n\n".join([*map(markdown_table, tables), LEGEND])
        write_bytes(out / SUMMARY, f"{text}\n".encode())
    write_overviews(found.values(), out)
    drawn = [pair for pair in found.values() if pair[0].group == "dialect"]
    if drawn:
        save(draw_evidence(drawn), out / FIGURE)
    for study, results in found.values():
        if study.skips:
            save(draw_kept_shares(study, results), out / study.name / KEPT_FIGURE)
    return tables


def write_overviews(found: Iterable[tuple[Study, Found]], out: Path) -> None:
    """A table for each group of studies with the same rows on several backbones, as Markdown."""
    groups: dict[str, list[tuple[Study, Found]]] = {}
    for study, results in found:
        groups.setdefault(study.group, []).append((study, results))
    for group, studies in groups.items():
        if len({study.backbone for study, _ in studies}) > 1:
            text = f"{markdown_table(overview(studies))}\n\n{OVERVIEW_LEGEND}\n"
            write_bytes(out / f"{group}.md", text.encode())


def overview(studies: Sequence[tuple[Study, Found]]) -> Table:
    """Accuracy over all questions and the difference to the first row, of all backbones."""
    headings = [("", "")]
    cells: dict[str, list[str]] = {title: [] for _, title in shown_rows(studies[0][0])}
    for study, results in studies:
        name, first = study.backbone_title, results.get(study.rows[0].name, {})
        headings += [(name, "val %"), (name, "difference")]
        for row, title in shown_rows(study):
            of_seed = results.get(row, {})
            accuracies = [lookup(r, "accuracy.val.overall") for r in of_seed.values()]
            own = row == study.rows[0].name or not of_seed
            cells[title] += [_mean(accuracies), NONE if own else difference_text(of_seed, first)]
    dataset, seeds = studies[0][0].dataset, len(studies[0][0].seeds)
    rows = tuple((title, *row) for title, row in cells.items())
    return Table(f"{dataset}, {seeds} seeds", tuple(headings), rows, ())


def kinds_of(results: Found) -> list[str]:
    """Kinds of questions that the results tell apart."""
    known = ("overall", "yes/no", "number", "other", "count")
    kinds: dict[str, None] = {}
    for of_seed in results.values():
        for result in of_seed.values():
            kinds |= dict.fromkeys(k for k in lookup(result, "accuracy.val") if k not in known)
    return list(kinds)


def study_table(study: Study, results: Found) -> Table:
    """One line for each row of a study."""
    kinds = kinds_of(results)
    types = kinds or ["yes/no", "other"]
    headings = [("", ""), ("runs", "n"), ("val %", "overall"), *(("val %", t) for t in types)]
    share = "kept share" if study.skips else "finetuned"
    headings += [(share, t) for t in kinds or [""]] + [("difference", "points")]
    first = results.get(study.rows[0].name, {})
    rows = []
    for name, title in shown_rows(study):
        of_seed = results.get(name)
        if of_seed is None:
            continue
        rows.append(
            (
                title,
                str(len(of_seed)),
                *(
                    _mean([lookup(r, f"accuracy.val.{t}") for r in of_seed.values()])
                    for t in ("overall", *types)
                ),
                *(
                    _mean([share_finetuned(r, kind) for r in of_seed.values()], 2)
                    for kind in kinds or [""]
                ),
                NONE if name == study.rows[0].name else difference_text(of_seed, first),
            )
        )
    counts = {r["accuracy"]["val"].get("count") for of in results.values() for r in of.values()}
    questions = max((count for count in counts if count), default=0)
    return Table(
        f"{study.title} ({questions:,} validation questions)", tuple(headings), tuple(rows), ()
    )


def share_finetuned(result: Result, kind: str) -> float | None:
    """Mean share of live decisions that are 1, of validation questions of a kind; "": of all."""
    decisions: dict[str, Any] | None = result.get("decisions")
    if not decisions:
        return None
    if not kind:
        mean: float = decisions["mean_live"]
        return mean
    shares = decisions["share_by_type"].get(kind, {}).get("share")
    if shares is None:
        return None
    return mean_of_live(shares, decisions["live"])


def _mean(values: Sequence[float | None], decimals: int = 1) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean = f"{statistics.fmean(known):.{decimals}f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.{decimals}f}"


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> tuple[float, float | None]:
    """Mean difference over the seeds that both have, and half of its confidence interval.

    Args:
        ours, theirs: a figure by seed.

    Returns:
        Both in the figure's unit; the second one is None for a single seed.

    Raises:
        ValueError: there is no seed that both have.
    """
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        raise ValueError("no seed in common")
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return mean, None
    error = statistics.stdev(differences) / math.sqrt(count)
    return mean, float(stats.t.ppf(0.5 + SHARE / 2, count - 1)) * error


def difference_text(ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> str:
    """`+9.1 (6.2 to 12.0)`, in points of overall accuracy."""
    overall = (
        {seed: float(lookup(r, "accuracy.val.overall")) for seed, r in side.items()}
        for side in (ours, theirs)
    )
    try:
        mean, half = paired_difference(*overall)
    except ValueError:
        return NONE
    if half is None:
        return f"{mean:+.1f}"
    return f"{mean:+.1f} ({mean - half:.1f} to {mean + half:.1f})"
