"""Arrays that are longer than a cluster takes."""

from __future__ import annotations

import dataclasses

import pytest

from data_shards.errors import InputError
from slurm.arrays import ARRAY, FIRST, array_indices, array_task, parts_of, spelled
from slurm.executor import handles
from slurm.records import Submitted
from slurm.script import sbatch_text
from tests.slurm.test_jobs import PLAIN, RUN


@pytest.mark.parametrize(
    ("array", "most", "parts"),
    [
        ("0-9", 10, []),
        ("1-10", 10, ["0-9"]),
        ("0-24", 10, ["0-9", "0-9", "0-4"]),
        ("1-25%4", 10, ["0-9%4", "0-9%4", "0-4%4"]),
        ("5,1000-1002", 10, ["0-3"]),
    ],
)
def test_parts_hold_every_index_once(array, most, parts):
    found = parts_of(array, most)
    assert [part.array for part in found] == parts
    if found:
        environs = [{"SLURM_ARRAY_TASK_ID": str(index), FIRST: str(part.first)} for part in found for index in array_indices(part.array)]
        assert [array_task(array, environ) for environ in environs] == [str(index) for index in array_indices(array)]
        assert all(int(environ["SLURM_ARRAY_TASK_ID"]) < most for environ in environs)


@pytest.mark.parametrize(("array", "words"), [("5", "5"), ("9,1,2,3,7", "1-3,7,9"), ("0-8:2", "0,2,4,6,8"), ("1,2", "1-2")])
def test_indices_are_spelled_as_they_are_read(array, words):
    assert spelled(array_indices(array)) == words and array_indices(words) == sorted(array_indices(array))


def test_some_indices_of_a_long_array_are_told_by_those_that_were_submitted():
    """Submitted again with two of its indices, the job is still the whole array; what SLURM calls 1 is the second of the two."""
    [part] = parts_of("1500,1600", 1001)
    environ = {"SLURM_ARRAY_TASK_ID": "1", FIRST: str(part.first), ARRAY: part.whole}
    assert part.array == "0-1" and array_task("1-2000", environ) == "1600"


def test_a_cluster_without_arrays_is_named():
    with pytest.raises(InputError, match="MaxArraySize of this cluster is 1"):
        parts_of("0-9", 1)


def test_outside_an_array_there_is_no_index():
    assert array_task(None, {}) is None and array_task("0-9", {"SLURM_ARRAY_TASK_ID": "3"}) == "3"


def test_a_part_s_script_says_where_it_begins_and_waits_for_the_part_before():
    spec = dataclasses.replace(PLAIN, array="1-25%4", dependency="afterok:3")
    part = dataclasses.replace(parts_of(spec.array, 10)[1], after="afterany:12")
    text = sbatch_text(spec, RUN, part)
    assert "#SBATCH --array=0-9%4\n" in text and "#SBATCH --dependency=afterok:3,afterany:12\n" in text
    assert f"\nexport {FIRST}=10 {ARRAY}=1-25%4\n" in text


def test_numbers_of_parts_are_told_as_the_whole_array_counts(tmp_path):
    record = Submitted(job_ids=("70", "81"), name="a", submitted_unix_s=0.0, array="1-15", part=10)
    assert [record.true_id(text) for text in ("70_0", "81_4", "81_2-4,0", "81")] == ["70_1", "81_15", "81_13-15,11", "81"]
    assert dataclasses.replace(record, part=0).true_id("70_3") == "70_3", "an array that went as it is"
    assert [record.indices(number) for number in record.job_ids] == [[str(i) for i in range(10)], ["0", "1", "2", "3", "4"]]
    assert [handle.job_id for handle in handles(record, tmp_path)][8:12] == ["70_8", "70_9", "81_0", "81_1"]
    plain = dataclasses.replace(record, job_ids=("70",), array="3,9", part=0)
    assert [handle.paths.stdout.name for handle in handles(plain, tmp_path)] == ["70_3_0_log.out", "70_9_0_log.out"]
