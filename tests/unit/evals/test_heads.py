"""The comparison of two rows of logits against float64, for vocabularies of any size and models however near."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from evals.heads import CACHED_LOGITS, MAX_LOGITS, Head, compare, rows_at_once  # noqa: E402


def reference(base: Any, cand: Any, targets: Any) -> tuple[Any, Any, Any]:
    """KL and both negative log-likelihoods as the definitions say, in float64."""
    p, q = (torch.log_softmax(x.double(), -1) for x in (base, cand))
    at = targets.unsqueeze(-1)
    return (p.exp() * (p - q)).sum(-1), -p.gather(-1, at).squeeze(-1), -q.gather(-1, at).squeeze(-1)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 50.0])
@pytest.mark.parametrize("vocab", [300, 128_256, 201_088])
def test_compare_keeps_its_digits(scale: float, vocab: int) -> None:
    """Tolerance: 0.2 % of the KL divergence, however small it is, and 1e-5 of the log-likelihoods."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, vocab, generator=generator) * 4
    cand = base + torch.randn(6, vocab, generator=generator) * scale
    targets = torch.arange(6)
    kl, nll_base, nll_cand = reference(base, cand, targets)
    agree = base.argmax(-1) == cand.argmax(-1)
    rows = compare(base, cand, targets)
    torch.testing.assert_close(rows.kl.double(), kl, rtol=2e-3, atol=1e-12)
    torch.testing.assert_close(rows.nll_baseline.double(), nll_base, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows.nll_candidate.double(), nll_cand, rtol=1e-5, atol=1e-5)
    assert bool((rows.agree == agree).all())
    assert bool((rows.kl >= 0).all())


def test_the_plain_formula_would_not_do() -> None:
    """Why `compare` does not take the difference of two log-softmaxes: at a KL of 1e-9 float32 has lost it."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(8, 5000, generator=generator) * 4
    cand = base + torch.randn(8, 5000, generator=generator) * 5e-5
    targets = torch.arange(8)
    kl, _, _ = reference(base, cand, targets)
    p, q = torch.log_softmax(base, -1), torch.log_softmax(cand, -1)
    plain = ((p.exp() * (p - q)).sum(-1).double() - kl).abs() / kl
    ours = (compare(base, cand, targets).kl.double() - kl).abs() / kl
    assert float(kl.max()) < 5e-9
    assert float(plain.max()) > 1, "the literal formula is off by more than the value itself"
    assert float(ours.max()) < 0.01


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(2, 400),
    spread=st.floats(0.0, 30.0),
    change=st.floats(0.0, 60.0),
    shift=st.floats(-50.0, 50.0),
)
def test_kl_is_never_negative_and_a_constant_changes_nothing(
    seed: int, vocab: int, spread: float, change: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, vocab, generator=generator) * spread
    cand = base + torch.randn(3, vocab, generator=generator) * change
    targets = torch.randint(vocab, (3,), generator=generator)
    kl, _, nll = reference(base, cand, targets)
    rows = compare(base.clone(), cand.clone(), targets)
    torch.testing.assert_close(rows.kl.double(), kl, rtol=2e-3, atol=2e-5)
    torch.testing.assert_close(rows.nll_candidate.double(), nll, rtol=1e-5, atol=2e-4)
    assert bool((rows.kl >= 0).all())
    moved = compare(base.clone(), cand + shift, targets)
    torch.testing.assert_close(moved.kl, rows.kl, rtol=5e-3, atol=1e-4)
    same = compare(base, base.clone(), targets)
    assert float(same.kl.max()) == 0.0
    assert bool(same.agree.all())
    assert torch.equal(same.nll_baseline, same.nll_candidate)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_stays_so_and_harms_no_other_position(value: float, side: int) -> None:
    logits = [torch.randn(3, 50), torch.randn(3, 50)]
    clean = compare(logits[0].clone(), logits[1].clone(), torch.arange(3))
    logits[side][1, 7] = value
    rows = compare(logits[0], logits[1], torch.arange(3))
    assert bool(rows.kl.isfinite()[[0, 2]].all())
    assert not bool(rows.kl.isfinite()[1] & rows.nll_candidate.isfinite()[1] & rows.nll_baseline.isfinite()[1])
    torch.testing.assert_close(rows.kl[[0, 2]], clean.kl[[0, 2]])


def test_bf16_products_are_as_exact_as_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, 512, generator=generator).bfloat16()
    hidden = torch.randn(70, 512, generator=generator).bfloat16()
    exact = hidden.double() @ weight.double().T
    fast = Head(weight.float(), None, None, 2000, bf16=True).logits(hidden)
    slow = Head(weight.float(), None, None, 2000).logits(hidden)
    assert fast.dtype == torch.float32
    bound = 3e-6 * float(exact.abs().max())
    assert float((fast - exact).abs().max()) < bound
    assert float((slow - exact).abs().max()) < bound
    rounded = torch.nn.functional.linear(hidden, weight).double()
    assert float((rounded - exact).abs().max()) > 1000 * bound / 3
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16", "the switch is put back"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("vocab", [300, 5120, 128_256, 201_088, 1 << 27])
def test_few_logits_exist_at_once(vocab: int, device: str) -> None:
    rows = rows_at_once(1024, vocab, device)
    assert 1 <= rows <= 1024
    assert rows == 1 or rows * vocab <= MAX_LOGITS
    assert rows_at_once(5, vocab, device) <= 5
    if device == "cpu" and vocab == 5120:
        assert rows * vocab <= CACHED_LOGITS
