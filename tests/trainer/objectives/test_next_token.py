"""The loss and the rank of a prediction."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from trainer.objectives.next_token import PADDING, NextToken

VOCAB = 7


def test_the_loss_is_the_mean_cross_entropy_of_the_real_predictions() -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets = torch.tensor([3, 0, 6, PADDING])
    result = NextToken().judge(logits, targets)
    shares = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    expected = -torch.log(shares[torch.arange(3), targets[:3]]).detach()
    torch.testing.assert_close(result.token_losses[:3], expected)
    torch.testing.assert_close(result.loss.detach(), expected.mean())
    assert result.token_losses[3] == 0 and result.token_ranks[3] == -1
    assert result.loss.requires_grad, "only the mean carries a gradient"
    assert not result.token_losses.requires_grad and not result.token_ranks.requires_grad
    assert (result.token_losses.dtype, result.token_ranks.dtype) == (torch.float32, torch.int32)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2)).requires_grad_()
    targets = torch.tensor([1, 2, 3])
    NextToken().judge(logits, targets).loss.backward()
    padded = torch.cat([logits.detach(), torch.full((5, VOCAB), 9.0)]).requires_grad_()
    NextToken().judge(padded, torch.cat([targets, torch.full((5,), PADDING)])).loss.backward()
    assert torch.equal(padded.grad[:3], logits.grad)
    assert not padded.grad[3:].any()


def test_the_loss_of_bf16_logits_is_computed_in_fp32() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(3)).bfloat16()
    targets = torch.arange(5)
    result = NextToken().judge(logits, targets)
    torch.testing.assert_close(result.token_losses, F.cross_entropy(logits.double(), targets, reduction="none").float())
    in_bf16 = F.cross_entropy(logits, targets, reduction="none").float()
    assert not torch.allclose(result.token_losses, in_bf16, atol=1e-4), "the control: bf16 sums would differ"


# With so few distinct values, nearly every row has ties.
@given(st.lists(st.lists(st.integers(0, 3), min_size=VOCAB, max_size=VOCAB), min_size=1, max_size=6), st.data())
def test_rank_counts_better_tokens_and_zero_means_argmax(rows: list[list[int]], data: st.DataObject) -> None:
    logits = torch.tensor(rows, dtype=torch.float32)
    targets = torch.tensor([data.draw(st.integers(0, VOCAB - 1)) for _ in rows])
    ranks = NextToken().judge(logits, targets).token_ranks
    assert torch.equal(ranks == 0, logits.argmax(1) == targets)
    for row, target, rank in zip(logits, targets, ranks, strict=True):
        better = int((row > row[target]).sum())
        assert rank == better or (better == 0 and rank == 1)


def test_inputs_are_shifted_by_one_and_padded_on_the_right() -> None:
    inputs, targets = NextToken().inputs_and_targets([5, 6, 7], length=4)
    assert inputs.tolist() == [5, 6, 0, 0]
    assert targets.tolist() == [6, 7, PADDING, PADDING]
    with pytest.raises(ValueError, match="3 ids make 2 predictions"):
        NextToken().inputs_and_targets([5, 6, 7], length=1)
