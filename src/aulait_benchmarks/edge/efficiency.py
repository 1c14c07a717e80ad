"""What a study of fine-tuning at the edge measures, as formulas of a few numbers each.

Sources: Woisetschlaeger et al., "Federated Fine-Tuning of LLMs on the Very Edge: The Good, the Bad,
the Ugly", DEEM 2024
(energy efficiency as tokens per second per watt, granularity as computing over communicating time);
Chowdhery et al., "PaLM", JMLR 2023, appendix B (model FLOPs utilisation). FLOP themselves are
counted by ``cost``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def tokens_read(source_lengths: Sequence[int], target_lengths: Sequence[int]) -> int:
    """Tokens of a batch: encoder and decoder tokens together, padding not counted.

    Args:
        source_lengths: non-pad tokens of every row at the encoder (or of its prompt).
        target_lengths: non-pad tokens of every row at the decoder (or of its response).
    """
    return sum(source_lengths) + sum(target_lengths)


def tokens_per_s(tokens: float, step_s: float) -> float:
    """Tokens a second of a step."""
    return tokens / step_s


def mfu(flop: float, step_s: float, peak_flop_per_s: float | None) -> float | None:
    """FLOP a second over the device's peak at that precision; None where the peak is not known.

    ``flop`` by the 6N convention gives the "model" MFU, the FLOP that were executed give the
    "actual" one. LoRA leaves out the gradients of frozen weights, so its model MFU may exceed its
    actual one by half, and may exceed 1.
    """
    return flop / step_s / peak_flop_per_s if peak_flop_per_s else None


def tokens_per_joule(tokens: float, energy_j: float | None) -> float | None:
    """Energy efficiency: tokens a second a watt, which is tokens a joule; None where the energy is
    not known."""
    return tokens / energy_j if energy_j else None


def granularity(computing_s: float, communicating_s: float) -> float:
    """G of a round: seconds of computing over seconds of communicating. Below 1 the link rules the
    round."""
    return computing_s / communicating_s


def adapter_numbers(layers: Mapping[str, tuple[int, int]], rank: int) -> int:
    """Numbers in the LoRA factors of all layers, rank · (M + N) each."""
    return sum(rank * (m + n) for m, n in layers.values())


def network_j(up_bytes: float, down_bytes: float, joules_per_byte: float) -> float:
    """Joules of the network between a machine and the server: all bytes times what a byte costs
    over all hops."""
    return (up_bytes + down_bytes) * joules_per_byte


def communication_share(computing_j: float, waiting_j: float, carried_j: float) -> float:
    """The part of a round's energy that goes into communication, 0 to 1.

    Args:
        computing_j: of the machine under load.
        waiting_j: of the machine while it sends and receives.
        carried_j: of the network.
    """
    return (waiting_j + carried_j) / (computing_j + waiting_j + carried_j)


def rounds_to(losses: Sequence[float], goal: float) -> int | None:
    """The first round, counted from 1, whose loss is at or below the goal; None where no round gets
    there."""
    return next((number for number, loss in enumerate(losses, 1) if loss <= goal), None)
