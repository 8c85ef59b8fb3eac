import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ai.train import Trainer, opt
from ai.train.distributed.job import check_device
from ai.train.distributed.process_group import _is_asleep
from ai.train.parallel import Ddp, Fsdp, as_parallel

OLD = torch.__version__ < "2.7"  # which shards on GPUs alone
FSDP = pytest.param("fsdp", marks=pytest.mark.skipif(OLD, reason="torch 2.6 shards on GPUs alone"))


@pytest.fixture(scope="module")
def two_ranks(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    result = job("two_ranks", folder, ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    return "".join((folder / f"rank-{rank}.txt").read_text() for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", FSDP])
def test_gradients_losses_averages_and_steps_on_two_ranks_equal_one_process(how, two_ranks):
    for rank in (0, 1):
        assert f"{how} rank {rank}: equal" in two_ranks


@pytest.mark.parametrize("how", ["ddp", FSDP])
def test_metrics_over_a_whole_validation_are_those_of_all_ranks_rows(how, two_ranks):
    for rank in range(2):
        assert f"{how} metrics rank {rank}: of all rows" in two_ranks


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        pytest.param("fsdp", "equal", marks=pytest.mark.skipif(OLD, reason="torch 2.6 shards on GPUs alone")),
        ("ddp", "requires_grad of 'body.0.weight' was changed while parallel='ddp' trains, which DDP cannot follow"),
    ],
)
def test_what_is_unfrozen_between_steps_is_trained_alike_on_all_ranks_or_refused(how, wanted, two_ranks):
    for rank in (0, 1):
        assert f"{how} switched rank {rank}: {wanted}" in two_ranks


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="torch 2.6 shards on GPUs alone")
def test_evaluations_leave_weights_and_averages_of_a_sharded_model_as_they_are(two_ranks):
    for rank in (0, 1):
        assert f"evaluated rank {rank}: equal" in two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", FSDP])
def test_nan_on_one_rank_ends_all_ranks(how, two_ranks):
    for rank in (0, 1):
        assert f"{how} raise rank {rank}: NonFiniteError" in two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", FSDP])
def test_skip_leaves_out_the_same_steps_on_every_rank(how, two_ranks):
    for rank in (0, 1):
        assert f"{how} skip rank {rank}: skipped" in two_ranks
        assert f"{how} skip rank {rank}: skipped 1, finite True" in two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", FSDP])
def test_stopped_ranks_resume_to_the_same_bits(how, two_ranks):
    for rank in (0, 1):
        assert f"{how} rank {rank}: resumed" in two_ranks


@pytest.mark.slow
def test_killed_rank_is_named_and_ends_the_job_and_the_next_goes_on_to_the_same_bits(job, tmp_path):
    cases = ["ddp"] if OLD else ["ddp", "fsdp"]
    result = job("killed_ranks", tmp_path, *cases)
    assert result.returncode == 0, result.stderr[-3000:]
    for case in cases:
        assert f"{case} resumed" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["at once", "in background"])
@pytest.mark.parametrize(
    ("parallel", "mine", "others"),
    [
        ("ddp", "no space left on device", "another rank could not write its part of the snapshot"),
        pytest.param("fsdp", "dcp: File too large", r"rank 1: \[Errno 27\] File too large: '.*/dcp'", marks=FSDP.marks),
    ],
)
def test_failed_writing_on_one_rank_fails_on_all_in_one_sentence(how, parallel, mine, others, two_ranks):
    for rank, why in enumerate((others, mine)):
        failed = rf"(\[Errno 27\] )?snapshot \S+/000000002 was not written \({why}\)"
        line = rf"^write {parallel} {how} rank {rank}: {failed}; those before it are as they were; left \[\]$"
        assert re.search(line, two_ranks, re.MULTILINE)


@pytest.mark.slow
def test_stop_on_one_rank_stops_all_at_the_same_step(two_ranks):
    steps = re.findall(r"rank \d stopped at (\d+)", two_ranks)
    assert len(steps) == 2
    assert len(set(steps)) == 1
    assert 5 <= int(steps[0]) <= 5 + 16


@pytest.mark.slow
def test_signal_to_one_rank_ends_all_at_the_same_step_without_asking_at_each(two_ranks):
    found = re.findall(r"rank \d signalled at (\d+) status (\d+) asked (\d+)", two_ranks)
    assert len(found) == 2
    assert found[0] == found[1]
    step, status, asked = map(int, found[0])
    assert status == 143  # nothing was saved
    assert 5 <= step <= 5 + 16
    assert asked <= step // 8 + 3  # the first two tell how long a step takes


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="torch 2.6 shards on GPUs alone")
def test_activation_checkpointing_and_the_bf16_policy_train_as_the_plain_model(two_ranks):
    for rank in (0, 1):
        assert f"options rank {rank}: equal" in two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["multi", "rl"])
def test_other_trainers_keep_the_ranks_alike(trainer, two_ranks):
    for rank in (0, 1):
        assert f"{trainer} rank {rank}: equal" in two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", FSDP])
def test_ranks_whose_data_end_apart_stop_together(how, two_ranks):
    for rank in (0, 1):
        assert f"{how} rank {rank} ended at 2" in two_ranks


@pytest.mark.slow
def test_a_seeded_script_draws_other_noise_on_each_rank(two_ranks):
    for rank in (0, 1):
        assert f"noise rank {rank} apart" in two_ranks


@pytest.mark.slow
def test_what_an_environment_learns_is_alike_on_all_ranks_and_resumes(two_ranks):
    for rank in (0, 1):
        assert f"environment rank {rank}: equal" in two_ranks


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="torch 2.6 shards on GPUs alone")
def test_parameters_of_an_environment_are_not_sharded(two_ranks):
    for rank in (0, 1):
        assert f"environment rank {rank}: the optimizer holds 1 parameters that are not the model's" in two_ranks


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="torch 2.6 shards on GPUs alone")
def test_sharded_snapshot_of_two_ranks_loads_on_three_and_on_one_and_exports_to_one_file(job, tmp_path):
    result = job("other_world", tmp_path, 2, 3, 1)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "export equal" in result.stdout


@pytest.mark.skipif(not OLD, reason="torch from 2.7 shards on a CPU")
def test_sharding_on_a_cpu_is_refused_where_torch_cannot(net):
    with pytest.raises(ValueError, match=r"parallel='fsdp' needs torch 2\.7 or newer for a model on the CPU, not 2\.6"):
        Fsdp().apply(net(), None, SimpleNamespace(precision=None))


@pytest.mark.parametrize(
    ("stat", "asleep"),
    [
        ("7 (pt_gloo_runloop) S 1 7", True),
        ("7 (pt_gloo_runloop) R 1 7", False),
        ("7 (pt_gloo_runloop) D 1 7", False),
        ("7 (python) R 1 7", True),
        ("7 (a) R (b) R 1 7", True),
    ],
)
def test_a_process_ends_only_when_gloos_threads_rest(stat, asleep, tmp_path):
    (tmp_path / "stat").write_text(stat)
    assert _is_asleep(tmp_path / "stat") is asleep
    assert _is_asleep(tmp_path / "ended")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_without_torchrun_parallel_changes_nothing(how, net, batches):
    model = net()
    assert Trainer(lambda m, b, s: m(b[0]).sum(), batches(2), parallel=how).train(model, opt.sgd(model)) == 2


def test_a_model_on_another_ranks_gpu_is_refused():
    parameter = SimpleNamespace(device=torch.device("cuda", 0))
    model = SimpleNamespace(parameters=lambda: iter([parameter]))
    check_device(model, torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"lies on cuda:0, and this rank's device is cuda:1: .*parallel\.device\(\)"):
        check_device(model, torch.device("cuda", 1))


def test_data_that_cannot_be_split_by_rank_is_named(capsys):
    rank = SimpleNamespace(rank=0, world=2)
    data = torch.utils.data.TensorDataset(torch.zeros(4, 1))
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=0)
    loader = torch.utils.data.DataLoader(data, sampler=sampler)
    assert Ddp().part_of(loader, rank) is loader
    assert not capsys.readouterr().err
    batches = [torch.zeros(1)]
    assert Ddp().part_of(batches, rank) is batches
    assert "the data (list) has no shard(rank, world)" in capsys.readouterr().err


def test_unknown_parallel_is_refused():
    with pytest.raises(ValueError, match=r"'ddp', 'fsdp', or a Ddp or Fsdp of ai\.train\.parallel, not 'tp'"):
        as_parallel("tp")
    assert as_parallel("fsdp") == Fsdp()
    assert as_parallel(Ddp(find_unused=True)).find_unused


def test_blocks_are_named_or_found():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), "head": nn.Linear(1, 1)})
    assert len(Fsdp()._find_blocks(model)) == 2
    assert Fsdp(blocks=["head"])._find_blocks(model) == [model["head"]]
    with pytest.raises(ValueError, match=r"blocks \(\['tail'\]\) must name a module of ModuleDict"):
        Fsdp(blocks=["tail"])._find_blocks(model)
