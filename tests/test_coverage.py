"""Coverage: which cells of the paper a dataset fills, and which it could never fill."""

import pytest
from lint_toy import LEAVE_ONE_OUT

from instructrec_jax.instructions.coverage import absent_aspects, cover, coverage_findings
from instructrec_jax.instructions.lint import Severity
from instructrec_jax.manifest import Manifest
from instructrec_jax.pipeline import registry

MODULE = "lint_toy"


def built(aspects: list[str], *, teacher: str = "hand-1", num_reviews: int = 0) -> Manifest:
    counts = {"texts/intentions_asked": num_reviews}
    for aspect in aspects:
        for split in ("train", "validation", "test"):
            name = f"{LEAVE_ONE_OUT}/{split}"
            counts[name] = counts.get(name, 0) + 5
            counts[f"{name}/{aspect}"] = 5
    settings = {"teacher": teacher}
    return Manifest(stage="build", inputs={}, settings=settings, counts=counts)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (built(["history+preference+specific_intention"]), {"vague_intention": "no reviews"}),
        (built(["preference+vague_intention"]), {"specific_intention": "no categories"}),
        (
            built(["history"], teacher="none"),
            {
                "preference": "no teacher",
                "vague_intention": "no teacher",
                "specific_intention": "no categories",
            },
        ),
        (built(["preference+specific_intention"], num_reviews=9), {}),
        (built(["history+specific_intention"]), {"vague_intention": "no reviews"}),
    ],
)
def test_what_a_dataset_cannot_have_is_told_from_what_is_missing(manifest, expected):
    found = absent_aspects(manifest)
    for aspect in ("preference", "vague_intention", "specific_intention"):
        assert found.get(aspect) == expected.get(aspect)


def variants_of(dataset: str) -> list:
    return [task.variant for task in registry.instruction_tasks(dataset)]


def test_an_empty_cell_is_an_error_only_where_the_dataset_could_fill_it():
    registry.import_task_module(MODULE, "own")
    rendered = variants_of("own")
    assert [variant.name for variant in rendered] == ["L1", "L2.vague", "L2.specific"]
    full, without_category = "history+vague_intention+specific_intention", "history"
    assert not coverage_findings(cover(rendered, built([full])))
    rows = cover(rendered, built([without_category]))
    assert [row.reason for row in rows] == ["", "no reviews", "no categories"]
    assert {finding.severity for finding in coverage_findings(rows)} == {Severity.WARNING}
    rows = cover(rendered, built([without_category], num_reviews=3))
    errors = [f for f in coverage_findings(rows) if f.severity is Severity.ERROR]
    assert len(errors) == 1
    assert "L2.vague" in errors[0].message
    assert "no training record for them has a vague_intention" in errors[0].message


def test_a_ranking_template_without_held_out_records_is_a_warning():
    registry.import_task_module(MODULE, "own")
    manifest = built(["history"])
    manifest.counts.pop(f"{LEAVE_ONE_OUT}/test/history")
    rows = cover(variants_of("own"), manifest)
    found = coverage_findings(rows)
    assert {finding.severity for finding in found} == {Severity.WARNING}
    assert "cannot be evaluated" in found[-1].message
