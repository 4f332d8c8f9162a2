"""The lambda-return on hand-made numbers."""

from __future__ import annotations

import pytest
import torch

from drama.agent.returns import lambda_return

REWARD = torch.tensor([[1.0, 2.0, 3.0]])
VALUE = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
GOES_ON = torch.ones(1, 3)


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        (0.0, [11.0, 17.0, 23.0]),  # 1 + 20/2, 2 + 30/2, 3 + 40/2: the value of the next state
        (1.0, [7.75, 13.5, 23.0]),  # 3 + 40/2, then 2 + 23/2, then 1 + 13.5/2
        (0.95, [7.995625, 13.675, 23.0]),  # 2 + (0.05 * 30 + 0.95 * 23)/2, 1 + (0.05 * 20 + 0.95 * 13.675)/2
    ],
)
def test_by_hand(lambda_: float, expected: list[float]) -> None:
    returns = lambda_return(REWARD, GOES_ON, VALUE, 0.5, lambda_)
    torch.testing.assert_close(returns, torch.tensor([expected]))


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [(0.0, [11.0, 2.0, 23.0]), (1.0, [2.0, 2.0, 23.0]), (0.95, [2.45, 2.0, 23.0])],
)
def test_a_termination_ends_the_return(lambda_: float, expected: list[float]) -> None:
    """The terminating action keeps its own reward; nothing after it counts before it."""
    cont = torch.tensor([[1.0, 0.0, 1.0]])
    torch.testing.assert_close(lambda_return(REWARD, cont, VALUE, 0.5, lambda_), torch.tensor([expected]))


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
def test_the_value_of_the_first_state_is_not_used(lambda_: float) -> None:
    other = VALUE.clone()
    other[:, 0] = -1000
    ours = lambda_return(REWARD, GOES_ON, VALUE, 0.9, lambda_)
    torch.testing.assert_close(lambda_return(REWARD, GOES_ON, other, 0.9, lambda_), ours)


def test_true_values_are_their_own_return() -> None:
    """Reward 1 at discount 0.9 for ever is worth 10: every mix of lambda gives 10."""
    value = torch.full((1, 6), 10.0)
    for lambda_ in (0.0, 0.3, 0.95, 1.0):
        returns = lambda_return(torch.ones(1, 5), torch.ones(1, 5), value, 0.9, lambda_)
        torch.testing.assert_close(returns, torch.full((1, 5), 10.0))


def test_rows_are_independent() -> None:
    reward = torch.cat([REWARD, torch.zeros(1, 3)])
    value = torch.cat([VALUE, torch.zeros(1, 4)])
    returns = lambda_return(reward, torch.ones(2, 3), value, 0.5, 0.95)
    torch.testing.assert_close(returns, torch.tensor([[7.995625, 13.675, 23.0], [0.0, 0.0, 0.0]]))


def test_one_step() -> None:
    returns = lambda_return(torch.tensor([[1.0]]), torch.ones(1, 1), torch.tensor([[5.0, 8.0]]), 0.25, 0.95)
    torch.testing.assert_close(returns, torch.tensor([[3.0]]))
