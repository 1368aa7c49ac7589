"""Looking inside a recurrent model: each probe turns what `record` saw of one pass into a plain result; figures are made of
results.

seen = record(model, losses)          one pass through the model, which is left as it was
flow(seen), gates(seen), jacobians(seen.tracks[0]), unrolled(seen), strip(cell, tokens), connectivity(model, losses)
trajectory(seen.tracks[0]), fixed_points(cell, x, states), cliff(model, loss), attention(weights), neighbours(states, corpus)
figures.flow_section(flow(seen))      the same as words and figures, for a notebook; page.page(title, sections) for a browser
"""

from recurra.probe.cliff import Cliff, cliff
from recurra.probe.connectivity import Connectivity, connectivity
from recurra.probe.flow import Flow, LayerFlow, Terms, flow, terms
from recurra.probe.gates import Followed, Gate, Gates, features, followers, gates
from recurra.probe.jacobians import Jacobians, jacobians
from recurra.probe.looks import Attention, attention
from recurra.probe.neighbours import Neighbours, neighbours
from recurra.probe.record import Losses, Record, Track, at_rest, losses_of, record
from recurra.probe.shapes import Shapes, unrolled
from recurra.probe.strip import Strip, strip
from recurra.probe.training import Training, training
from recurra.probe.trajectory import FixedPoints, Trajectory, fixed_points, trajectory

__all__ = [
    "Attention",
    "Cliff",
    "Connectivity",
    "FixedPoints",
    "Flow",
    "Followed",
    "Gate",
    "Gates",
    "Jacobians",
    "LayerFlow",
    "Losses",
    "Neighbours",
    "Record",
    "Shapes",
    "Strip",
    "Terms",
    "Track",
    "Training",
    "Trajectory",
    "at_rest",
    "attention",
    "cliff",
    "connectivity",
    "features",
    "fixed_points",
    "flow",
    "followers",
    "gates",
    "jacobians",
    "losses_of",
    "neighbours",
    "record",
    "strip",
    "terms",
    "training",
    "trajectory",
    "unrolled",
]
