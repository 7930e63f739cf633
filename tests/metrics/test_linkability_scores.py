"""Scores of identification and matching against scikit-learn's, and against what they must be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from gradleak_lib.metrics import balanced_pairs, identification, identity_bits, matching_ap


def drawn(users, each, *, signal=0.0, seed=0):
    """Scores ``[users * each, users]`` with a signal for the true user, the users and as many clients as updates."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(users), each)
    scores = rng.standard_normal((len(owner), users))
    scores[np.arange(len(owner)), owner] += signal
    return scores, owner, np.arange(len(owner))


tables = st.integers(2, 6).flatmap(
    lambda users: st.tuples(
        st.lists(
            st.lists(st.integers(-3, 3), min_size=users, max_size=users), min_size=users, max_size=25
        ).map(lambda rows: np.array(rows, dtype=float)),
        st.just(users),
        st.integers(0, 1000),
    )
)


@settings(max_examples=80, deadline=None)
@given(tables)
def test_average_precision_is_scikit_learns_with_and_without_ties(table):
    scores, users, seed = table
    rng = np.random.default_rng(seed)
    owner = rng.integers(users, size=len(scores))
    for values in (scores, scores + rng.random(scores.shape)):
        result = identification(values, owner, np.arange(len(owner)), draws=1)
        for user in range(users):
            if (owner == user).any():
                expected = average_precision_score(owner == user, values[:, user])
                assert result.per_class[user] == pytest.approx(expected, abs=1e-12)
            else:
                assert math.isnan(result.per_class[user])
        assert result.ap == pytest.approx(np.nanmean(result.per_class))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    user=st.integers(0, 3),
    scale=st.floats(0.01, 100),
    shift=st.floats(-100, 100),
    power=st.sampled_from([1, 3]),
)
def test_only_the_order_of_a_column_counts(seed, user, scale, shift, power):
    scores, owner, clients = drawn(4, 6, signal=1.0, seed=seed)
    changed = scores.copy()
    changed[:, user] = scale * scores[:, user] ** power + shift
    before, after = (identification(table, owner, clients, draws=1) for table in (scores, changed))
    assert after.per_class == pytest.approx(before.per_class, abs=1e-12)
    # Neither does the order of the updates, nor the names of the users.
    order = np.random.default_rng(seed).permutation(len(owner))
    names = np.random.default_rng(seed + 1).permutation(4)
    renamed = identification(scores[order][:, np.argsort(names)], names[owner[order]], clients, draws=1)
    assert renamed.per_class[names] == pytest.approx(before.per_class, abs=1e-12)
    assert (renamed.top1, renamed.top5) == (before.top1, before.top5)


@pytest.mark.parametrize("users", [6, 9])
def test_top_k_is_scikit_learns_where_nothing_ties(users):
    scores, owner, clients = drawn(users, 10, signal=1.0)
    result = identification(scores, owner, clients)
    assert result.top1 == pytest.approx(top_k_accuracy_score(owner, scores, k=1))
    assert result.top5 == pytest.approx(top_k_accuracy_score(owner, scores, k=5))
    assert result.top1 < result.top5 < 1


def test_top_k_of_two_users_and_of_ties():
    owner = np.array([0, 0, 1, 1])
    clients = np.arange(4)
    right = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    assert identification(right, owner, clients).top1 == 1
    assert identification(right[:, ::-1], owner, clients).top1 == 0
    assert identification(right, owner, clients).top5 == 1
    # Constant scores know nothing.
    result = identification(np.zeros((20, 10)), np.arange(20) % 10, np.arange(20))
    assert (result.top1, result.top5) == (pytest.approx(0.1), pytest.approx(0.5))
    assert result.ap == pytest.approx(0.1)
    half = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert identification(half, np.array([0, 0]), np.arange(2)).top1 == pytest.approx(0.25)


def test_perfect_and_reversed_scores():
    owner = np.tile(np.arange(5), 8)
    perfect = np.eye(5)[owner]
    result = identification(perfect, owner, np.arange(40))
    assert (result.ap, result.top1, result.top5) == (1, 1, 1)
    assert result.gain == pytest.approx(1 / result.chance)
    worst = identification(-perfect, owner, np.arange(40))
    assert worst.ap == pytest.approx(0.2)  # a user's own come last, behind all others, which tie
    assert worst.top1 == 0


def test_chance_is_a_little_above_one_in_u():
    """Of m random places, a user's n updates take precisions that lie above n / m on average, by about log(m) / m."""
    for users, each in ((10, 10), (4, 50)):
        scores, owner, clients = drawn(users, each)
        result = identification(scores, owner, clients, draws=30)
        assert 1 / users < result.chance < 1 / users + 2 * math.log(users * each) / (users * each) + 0.01
        assert result.gain == pytest.approx(1, abs=0.2)
        assert result.ap == pytest.approx(result.chance, abs=0.05)
        assert result.null.mean() == pytest.approx(result.chance, abs=0.03)
        assert len(result.null) == 30


def test_the_null_of_alike_clients_lies_above_chance():
    """Eight clients whose updates all look alike: scores that know no user rank each client's updates together."""
    rng = np.random.default_rng(0)
    client = np.repeat(np.arange(8), 20)
    nulls, chances, gains = [], [], []
    for _ in range(20):
        scores = rng.standard_normal((8, 8))[client] + 0.01 * rng.standard_normal((160, 8))
        result = identification(scores, client, client, draws=5)
        nulls.append(result.null.mean())
        chances.append(result.chance)
        gains.append(result.gain_over_null)
    assert np.mean(nulls) > 1.3 * np.mean(chances)
    assert np.mean(gains) == pytest.approx(1, abs=0.2)


def test_the_null_permutes_clients_not_updates():
    """With one client, no permutation changes anything; users of several clients keep as many of them."""
    scores, _, _ = drawn(3, 4, signal=1.0)
    alone = identification(scores, np.zeros(12, dtype=int), np.zeros(12))
    assert alone.null == pytest.approx(alone.ap)
    owner, client = np.repeat([0, 1], 20), np.repeat(np.arange(4), 10)
    scores = np.eye(2)[owner] + 1e-3 * np.random.default_rng(0).random((40, 2))
    result = identification(scores, owner, client, draws=60)
    # Of the six ways to name two of four clients, one is right (1.0), one reversed, four mix.
    right = result.null > 0.999
    assert 2 <= right.sum() <= 25
    assert (result.null[~right] < 0.9).all()


def test_seeds_of_identification():
    scores, owner, clients = drawn(4, 5)
    first, same, other = (identification(scores, owner, clients, seed=seed) for seed in (1, 1, 2))
    assert (first.null == same.null).all()
    assert first.chance == same.chance != other.chance
    assert first.ap == other.ap


def test_identification_refuses():
    scores, owner, clients = drawn(3, 4)
    bad = scores.copy()
    bad[1, 2] = np.nan
    for arguments, message in (
        ((scores[0], owner, clients), r"scores must be \[M, U\]"),
        ((scores, owner[:3], clients), "scores must be"),
        ((scores, owner, clients[:3]), "scores must be"),
        ((scores[:0], owner[:0], clients[:0]), "M at least 1"),
        ((bad, owner, clients), "NaN or infinity"),
        ((np.where(bad == bad, scores, -np.inf), owner, clients), "NaN or infinity"),
        ((scores, owner + 1, clients), r"users must lie in 0\.\.2, got 1\.\.3"),
        ((scores, owner - 1, clients), r"users must lie in 0\.\.2, got -1\.\.1"),
    ):
        for function in (identification, identity_bits):
            with pytest.raises(ValueError, match=message):
                function(*arguments)
    with pytest.raises(ValueError, match="only one user"):
        identification(scores, owner, clients * 0)
    with pytest.raises(ValueError, match="as many users as clients"):
        balanced_pairs((owner, clients[:3]), (owner, clients), count=1)
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        identification(scores, owner, clients, draws=0)
    with pytest.raises(ValueError, match="two or more"):
        identity_bits(scores, owner * 0, clients * 0)


# Pairs.


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    second=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    count=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_balanced_pairs(first, second, count, seed):
    """Clients 2u and 2u + 1 are those of user u."""
    sides = [np.array(clients) for clients in (first, second)]
    possible = any(a != b and a // 2 == b // 2 for a in first for b in second)
    possible = possible and len({client // 2 for client in first + second}) > 1
    arguments = [(clients // 2, clients) for clients in sides]
    if not possible:
        with pytest.raises(ValueError, match="pairs need"):
            balanced_pairs(*arguments, count=count, seed=seed)
        return
    left, right, same = balanced_pairs(*arguments, count=count, seed=seed)
    assert len(left) == len(right) == len(same) == 2 * count
    assert same.sum() == count
    a, b = sides[0][left], sides[1][right]
    assert (a != b).all()
    assert ((a // 2 == b // 2) == same).all()
    again = balanced_pairs(*arguments, count=count, seed=seed)
    assert all((one == other).all() for one, other in zip(again, (left, right, same), strict=True))


def test_pairs_take_each_user_equally_often_and_differ_by_seed():
    client = np.concatenate([np.repeat([0, 1], 50), [2, 3, 4, 5]])
    side = client // 2, client
    left, _, same = balanced_pairs(side, side, count=600)
    assert np.bincount((client // 2)[left][same]) == pytest.approx([200, 200, 200], abs=45)
    other, _, _ = balanced_pairs(side, side, count=600, seed=1)
    assert (left != other).any()
    with pytest.raises(ValueError, match="count must be 1 or more"):
        balanced_pairs(side, side, count=0)
    with pytest.raises(ValueError, match="pairs need"):
        balanced_pairs((side[0][:0], side[1][:0]), side, count=1)
    # A user with one client only is nobody's partner; all users with one client are refused.
    lonely = np.array([0, 1, 2])
    with pytest.raises(ValueError, match="pairs need"):
        balanced_pairs((lonely, lonely), (lonely, lonely), count=1)


def test_matching_ap():
    same = np.arange(40) < 20
    assert matching_ap(same, same.astype(float)) == 1
    assert matching_ap(same, np.zeros(40)) == 0.5
    rng = np.random.default_rng(0)
    scores = rng.random(40)
    assert matching_ap(same, scores) == pytest.approx(average_precision_score(same, scores))


# Bits.


def test_bits_of_perfect_scores_are_all_there_are():
    owner, client = np.tile(np.arange(8), 10), np.arange(80)
    all_but_the_doubt = np.log2(8 * (1 - 1 / 40) + 1 / 40)
    for scale in (1e-9, 1e-2, 1.0, 100.0, 1e9):
        bits = identity_bits(scale * np.eye(8)[owner], owner, client)
        assert bits == pytest.approx(all_but_the_doubt, abs=1e-3)


def test_one_error_of_a_sure_attack_does_not_cost_all_bits():
    owner, client = np.tile(np.arange(8), 10), np.arange(80)
    scores = 100 * np.eye(8)[owner]
    scores[0] = scores[1]
    assert 2.7 < identity_bits(scores, owner, client) < 2.968


def test_random_scores_carry_no_bits():
    for seed in range(5):
        scores, owner, clients = drawn(8, 50, seed=seed)
        assert -0.05 < identity_bits(10 * scores, owner, clients) < 0.02
    assert identity_bits(np.zeros((16, 8)), np.arange(16) % 8, np.arange(16)) == pytest.approx(0, abs=1e-9)
    # Confidently wrong: no temperature helps, and the flattest is taken.
    wrong = np.eye(8)[(owner + 1) % 8]
    assert -0.01 < identity_bits(wrong, owner, clients) <= 0


def test_bits_are_those_of_a_noisy_channel():
    """True user with probability 0.7, else any other, told as such: the mutual information is known."""
    rng = np.random.default_rng(0)
    owner = rng.integers(4, size=6000)
    told = np.where(rng.random(6000) < 0.7, owner, (owner + rng.integers(1, 4, size=6000)) % 4)
    truth = 2 + 0.7 * math.log2(0.7) + 0.3 * math.log2(0.1)
    for scale in (0.1, 1.0, 30.0):
        assert identity_bits(scale * np.eye(4)[told], owner, np.arange(6000)) == pytest.approx(
            truth, abs=0.05
        )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), signal=st.floats(0, 20), users=st.integers(2, 6), shift=st.floats(-50, 50)
)
def test_bits_never_exceed_the_entropy(seed, signal, users, shift):
    scores, owner, clients = drawn(users, 6, signal=signal, seed=seed)
    bits = identity_bits(scores, owner, clients)
    assert bits <= math.log2(users) + 1e-9
    shifted = scores + shift * np.arange(len(owner))[:, None]  # of a row, only differences count
    assert identity_bits(shifted, owner, clients) == pytest.approx(bits, abs=1e-3)


def test_the_temperature_is_that_of_other_clients():
    """Two halves of the clients, one right and one wrong: neither may choose for itself."""
    owner = np.tile(np.arange(4), 20)
    client = np.arange(80)
    scores = np.eye(4)[owner]
    scores[1::2] = np.eye(4)[(owner[1::2] + 1) % 4]
    assert identity_bits(scores, owner, client) < -1
