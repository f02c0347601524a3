"""What a job asks for against what a site has, before it is submitted."""

from __future__ import annotations

import dataclasses

import pytest

from data_shards.errors import InputError
from slurm.offers import UNLIMITED, check_fit, gpus_of, limit_minutes, offers, read_offers, waits_for
from tests.slurm.test_jobs import PLAIN

SITE = """\
gpu|up|4|64|512000|2-00:00:00|gpu:a100:4(S:0-1)
gpu|up|2|128|1024000|2-00:00:00|gpu:h100:8,nvme:1
cpu*|up|100|32|128000|infinite|(null)
old|drain|10|16|64000|1:00:00|(null)
mended|down|10|16|64000|1:00:00|(null)
"""


def test_sinfo_is_read():
    found = read_offers(SITE)
    assert [(o.partition, o.default, o.up, o.nodes, o.cpus, o.gpus, o.minutes) for o in found] == [
        ("gpu", False, True, 4, 64, 4, 2880),
        ("gpu", False, True, 2, 128, 8, 2880),
        ("cpu", True, True, 100, 32, 0, UNLIMITED),
        ("old", False, False, 10, 16, 0, 60),
        ("mended", False, False, 10, 16, 0, 60),
    ]
    texts = ("(null)", "gpu:4", "gpu", "gpu:a100:2,gpu:h100:3", "shard:8,gpu:tesla:1(IDX:0)")
    assert [gpus_of(text) for text in texts] == [0, 4, 1, 5, 1]
    assert (limit_minutes("30:00"), limit_minutes("1-01:00:00"), limit_minutes("UNLIMITED")) == (30, 1500, UNLIMITED)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"nodes": 100, "cpus_per_task": 32},
        {"partition": "gpu", "tasks_per_node": 8, "gpus_per_task": 1, "nodes": 2},
        {"partition": "gpu", "tasks_per_node": 4, "gpus_per_task": 1, "nodes": 6, "memory": "500G"},
        {"partition": "old,cpu"},
        {"partition": "mended"},
        {"partition": "gpu", "memory": "0"},
        {"partition": "gpu,cpu", "time_minutes": 5000},
    ],
)
def test_what_fits_passes(change):
    check_fit(dataclasses.replace(PLAIN, **change), read_offers(SITE))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"partition": "gpus"}, "no partition 'gpus'(.|\n)*did you mean 'gpu'(.|\n)*cpu: 100 node"),
        ({"partition": "gpu", "tasks_per_node": 16, "gpus_per_task": 1}, "a node of gpu has 8 GPUs, the job asks for 16"),
        ({"partition": "cpu", "gpus_per_task": 1}, "a node of cpu has 0 GPUs, the job asks for 1 a node(.|\n)*gpu: 2 node.*8 GPUs"),
        ({"partition": "cpu", "cpus_per_task": 33}, "32 cores, the job asks for 33"),
        ({"partition": "cpu", "memory": "200G"}, "128000 MiB of memory, the job asks for 204800"),
        ({"nodes": 101}, r"cpu has 100 node\(s\) of that kind(.|\n)*gpu has 6"),
        ({"gpus_per_task": 9}, "cpu has 0 GPUs(.|\n)*gpu has 8 GPUs"),
        ({"partition": "gpu", "tasks_per_node": 8, "gpus_per_task": 1, "nodes": 3}, r"gpu has 2 node\(s\) of that kind"),
        ({"partition": "gpu", "time_minutes": 5000}, "ends jobs after 2880 minutes"),
        ({"partition": "old"}, "takes no jobs now"),
        ({"partition": "gpu,old", "time_minutes": 5000}, "gpu ends jobs after.*; old takes no jobs"),
    ],
)
def test_what_no_partition_could_start_is_refused_with_what_there_is(change, words):
    with pytest.raises(InputError, match=words):
        check_fit(dataclasses.replace(PLAIN, **change), read_offers(SITE))


def test_a_partition_that_is_down_now_is_waited_for_with_a_word():
    there = read_offers(SITE)
    assert "mended starts no jobs now (it is DOWN)" in waits_for(dataclasses.replace(PLAIN, partition="mended"), there)
    assert waits_for(dataclasses.replace(PLAIN, partition="mended,gpu"), there) is None is waits_for(PLAIN, there)


def test_where_none_is_named_the_site_may_choose_any():
    check_fit(dataclasses.replace(PLAIN, gpus_per_task=8), read_offers(SITE))
    check_fit(PLAIN, read_offers(SITE.replace("*", "")))


@pytest.mark.slurm
def test_a_real_cluster_s_offers(cluster):
    found = {offer.partition: offer for offer in offers()}
    assert set(found) == {"main", "scavenge"} and found["main"].default
    assert (found["main"].nodes, found["main"].cpus, found["main"].gpus) == (2, 4, 0)
    with pytest.raises(InputError, match="0 GPUs"):
        check_fit(dataclasses.replace(PLAIN, gpus_per_task=1), list(found.values()))
