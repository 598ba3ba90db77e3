"""How an app hangs together: topics, services, schedules, handlers and patterns as a graph, to read and to draw.

``topology(app)`` is what is known at registration: what handlers listen to, and the topics and services that they and
the functions they call name. ``observe(app)`` adds what the buses know: topics that hold messages, groups of other
apps, and who published.
"""

from .drawing import mermaid, tree
from .graph import Edge, Node, Topology, topology
from .observing import observe
from .orphans import Orphans, orphans
from .svg import svg

__all__ = ["Edge", "Node", "Orphans", "Topology", "mermaid", "observe", "orphans", "svg", "topology", "tree"]
