"""Stochastic depth computes the kept samples alone, and gives what masking all of them would."""

import pytest
import torch
from torch import nn

from tests.contract.reduced import build, pictures
from tests.models.oracles import images_for, random_model, small
from vitrail import Tape
from vitrail.models.parts import Attention, DropPath, drop_paths, set_drop_path_draws

# One of every family that has stochastic depth.
NAMES = (
    *("vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_base_r50_s16_224", "t2t_vit_7"),
    *("cvt_13_224", "pvt_tiny", "pvt_v2_b0", "resnetv2_50x1_bit", "resnet50", "botnet50_224"),
)
BATCH = 6


def masked(self, x, branch, *, shortcut=None, whole=False):
    """What `DropPath.around` says it gives."""
    return (x if shortcut is None else shortcut) + self(branch(x))


def in_training(name, rate=0.5):
    model = build(name, drop_path=rate)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # its masks are drawn for the samples that are computed
    sites = len(drop_paths(model))
    draws = torch.rand(BATCH, sites, generator=torch.Generator().manual_seed(3))
    draws[:, 0] = 0.0  # at one place nothing is kept, at another everything
    draws[:, -1] = 0.99
    set_drop_path_draws(model, draws)
    return model.train()


def outcome(model, images, tape=None):
    model.zero_grad()
    logits = model(images, tape=tape)
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def close(actual, expected):
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11 * max(scale, 1e-3))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_logits_and_gradients_as_with_masks(name, monkeypatch):
    model = in_training(name)
    images = pictures(model, BATCH)
    logits, gradients = outcome(model, images)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    taped, of_taped = outcome(model, images, Tape())
    monkeypatch.setattr(DropPath, "around", masked)
    again = in_training(name)
    again.load_state_dict(build(name, drop_path=0.5).state_dict())
    expected, of_expected = outcome(again, images)
    close(logits, expected)
    close(taped, expected)
    for key, gradient in of_expected.items():
        # Also where a whole branch was dropped: zeros, which weight decay and momentum go on from.
        assert (gradients[key] is None) == (gradient is None), key
        if gradient is not None:
            close(gradients[key], gradient)
            close(of_taped[key], gradient)
    for key, buffer in again.named_buffers():
        if not key.endswith("num_batches_tracked"):
            close(buffers[key], buffer)


def test_only_the_kept_samples_go_through_a_branch():
    model = random_model(small(depth=3, drop_path=0.5, drop_path_rule="constant")).train()
    draws = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    set_drop_path_draws(model, draws)
    seen = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        block.mlp.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    images = images_for(small(), 8)
    model(images)
    assert seen == [int((draws[:, site] >= 0.5).sum()) for site in range(6)]
    seen.clear()
    tape = Tape()
    model(images, tape=tape)  # a tape holds every sample
    assert seen == [8] * 6
    assert tape["blocks.1.attention"].shape[0] == 8
    seen.clear()
    model.eval()(images)
    assert seen == [8] * 6


def test_batch_norm_sees_every_sample():
    model = in_training("cvt_13_224", rate=0.9)
    sizes = []
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    model(pictures(model, BATCH))
    assert set(sizes) == {BATCH}


def test_half_precision_branches_are_added_in_full():
    model = random_model(small(depth=3, drop_path=0.5)).float().train()
    set_drop_path_draws(model, torch.rand(8, len(drop_paths(model))))
    images = images_for(small(), 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        skipping, taped = model(images), model(images, tape=Tape(only="nothing"))
    torch.testing.assert_close(skipping, taped, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_repeats_the_draws_bit_for_bit(name):
    found = []
    for checkpointing in (False, True):
        model = build(name, drop_path=0.5).float().train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.2
        model.checkpointing = checkpointing
        torch.manual_seed(5)  # of dropout, and of the samples to drop: no draws are set
        found.append(outcome(model, pictures(model, BATCH).float()))
    assert torch.equal(found[0][0], found[1][0])
    for key, gradient in found[0][1].items():
        assert gradient is None or torch.equal(gradient, found[1][1][key]), key


def test_new_draws_in_a_compiled_model_are_masks():
    model = random_model(small(depth=2, drop_path=0.5)).train()
    images = images_for(small(), BATCH)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for seed in range(3):
        draws = torch.rand(BATCH, 2, generator=torch.Generator().manual_seed(seed))
        set_drop_path_draws(model, draws)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-10, atol=1e-10)
    torch.compiler.reset()


def test_a_dropped_branch_costs_no_attention(monkeypatch):
    calls = []
    forward = Attention.forward
    monkeypatch.setattr(
        Attention, "forward", lambda self, x, *rest: calls.append(len(x)) or forward(self, x, *rest)
    )
    model = random_model(small(depth=1, drop_path=0.5, drop_path_rule="constant")).train()
    set_drop_path_draws(model, torch.zeros(8, 2))
    model(images_for(small(), 8))
    assert calls == [1]  # one sample, times zero, so that every weight has a gradient
