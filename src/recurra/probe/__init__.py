"""Looking inside a recurrent model: each probe turns what `record` saw of one pass into a plain result; figures are made of
results.

seen = record(model, losses)          one pass through the model, which is left as it was
flow(seen), gates(seen), jacobians(seen.tracks[0]), unrolled(seen), strip(cell, tokens), connectivity(model, losses)
"""

from recurra.probe.connectivity import Connectivity, connectivity
from recurra.probe.flow import Flow, LayerFlow, Terms, flow, terms
from recurra.probe.gates import Followed, Gate, Gates, features, followers, gates
from recurra.probe.jacobians import Jacobians, jacobians
from recurra.probe.record import Losses, Record, Track, losses_of, record
from recurra.probe.shapes import Shapes, unrolled
from recurra.probe.strip import Strip, strip
from recurra.probe.training import Training, training

__all__ = [
    "Connectivity",
    "Flow",
    "Followed",
    "Gate",
    "Gates",
    "Jacobians",
    "LayerFlow",
    "Losses",
    "Record",
    "Shapes",
    "Strip",
    "Terms",
    "Track",
    "Training",
    "connectivity",
    "features",
    "flow",
    "followers",
    "gates",
    "jacobians",
    "losses_of",
    "record",
    "strip",
    "terms",
    "training",
    "unrolled",
]
