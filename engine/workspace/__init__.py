"""What is open: checkpoints and loaded models, passed to the jobs that need them."""

from engine.workspace.loaded import Loaded
from engine.workspace.opened import Opened
from engine.workspace.workspace import Workspace

__all__ = ["Loaded", "Opened", "Workspace"]
