"""Order of the training stream against the same arithmetic written out position by position."""

import collections

import numpy as np
import pytest

from vivit_jax.data.host_tf import tf
from vivit_jax.data.selection import order
from vivit_jax.data.selection.order import Order, block_slots


def stream(stream_order, batch_size, first=0, rows=None, count=1000):
    dataset = stream_order.dataset(batch_size, first, rows or (0, batch_size)).take(count)
    positions, videos = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.array(positions), np.array(videos)


def permutation(stream_order, dataset, epoch):
    return order.make_permutation(
        stream_order.sizes[dataset], stream_order.seed, tf.constant(epoch, tf.int64), dataset
    ).numpy()


@pytest.mark.parametrize(
    ("weights", "slots"),
    [((1,), (1,)), ((3, 1), (3, 1)), ((0.5, 0.25, 0.25), (2, 1, 1)), ((2, 1), (2, 1)), ((np.pi, 1), (759, 241))],
)
def test_slots_have_ratio_of_weights(weights, slots):
    result = block_slots(weights)
    assert sum(result) <= 1000
    np.testing.assert_allclose(np.array(result) / sum(result), np.array(weights) / sum(weights), atol=1e-3)
    assert result == slots


def test_weights_too_small_for_a_slot_are_errors():
    with pytest.raises(ValueError, match=r"weight 1e-05 .* less than a 1000th"):
        block_slots((1, 1e-5))


def test_each_epoch_is_a_permutation():
    stream_order = Order((37,), 5)
    positions, videos = stream(stream_order, 8)
    assert positions.tolist() == list(range(1000))
    expected = np.concatenate([permutation(stream_order, 0, epoch) for epoch in range(28)])[:1000]
    assert videos.tolist() == expected.tolist()
    assert sorted(videos[:37]) == list(range(37))


def test_clips_of_a_video_are_adjacent():
    once, thrice = stream(Order((37,), 5), 8, count=300)[1], stream(Order((37,), 5, clips=3), 12, count=900)[1]
    assert thrice.tolist() == np.repeat(once, 3).tolist()


def test_mixture_keeps_shares_and_epochs():
    stream_order = Order((10, 7, 50), 3, (3, 1, 2), clips=2)
    positions, videos = stream(stream_order, 12, count=12 * 200)
    assert positions.tolist() == list(range(12 * 200))
    videos = videos.reshape(-1, 2)
    assert (videos[:, 0] == videos[:, 1]).all()
    dataset = np.searchsorted([10, 17], videos[:, 0], side="right")
    blocks = dataset.reshape(-1, 6)
    assert {tuple(sorted(block)) for block in blocks} == {(0, 0, 0, 1, 2, 2)}
    assert len({tuple(block) for block in blocks}) > 20, "shuffled"
    for number, first in enumerate((0, 10, 17)):
        of_dataset = videos[dataset == number, 0] - first
        size = stream_order.sizes[number]
        expected = np.concatenate([permutation(stream_order, number, e) for e in range(-(-len(of_dataset) // size))])
        assert of_dataset.tolist() == expected[: len(of_dataset)].tolist()


@pytest.mark.parametrize("stream_order", [Order((37,), 1, clips=2), Order((10, 7, 50), 1, (3, 1, 2), clips=2)])
def test_any_start_and_rows_match_whole_stream(stream_order):
    whole = dict(zip(*stream(stream_order, 16, count=3000), strict=True))
    for first, rows in ((16, (0, 16)), (16 * 101, (0, 16)), (32, (5, 6)), (32, (8, 16))):
        positions, videos = stream(stream_order, 16, first, rows, count=100)
        assert positions[0] == first + rows[0]
        assert all(rows[0] <= p % 16 < rows[1] for p in positions)
        assert videos.tolist() == [whole[p] for p in positions]


@pytest.mark.parametrize("stream_order", [Order((240_480,), 0), Order((240_480, 5_000), 0, (3, 1))])
def test_late_start_costs_no_more_permutations(stream_order, monkeypatch):
    """Counted, eagerly: what is done before the first position is known does not grow with the step."""
    calls = collections.Counter()
    real = order.make_permutation

    def counting(size, *rest):
        calls[size] += 1
        return real(size, *rest)

    monkeypatch.setattr(order, "make_permutation", counting)
    for step in (0, 1_000, 900_000):
        calls.clear()
        number = step * 64 // stream_order.group
        videos = stream_order.videos(tf.constant(number, tf.int64))
        assert len(videos) == stream_order.group <= 8192
        assert all(count <= 2 for count in calls.values()), (step, calls)


def test_fingerprint_identifies_order():
    orders = [Order((48,), 0), Order((49,), 0), Order((48,), 1), Order((48,), 0, clips=2), Order((48, 5), 0, (1, 1))]
    orders += [Order((48, 5), 0, (2, 1)), Order((48, 6), 0, (1, 1))]
    fingerprints = [each.fingerprint() for each in orders] + [
        orders[0].fingerprint(["a"]),
        orders[0].fingerprint(["b"]),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert Order((48,), 0).fingerprint() == fingerprints[0]
    assert {len(text) for text in fingerprints} == {16}
