"""Which namespaces of the memory plugin a workspace may read and write: its own, its team's and its organisation's.

They follow from its place in the hierarchy alone (contract 7.2), so nothing is stored about them and a workspace that
is moved reads elsewhere from then on.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from molecule_runtime.reference_platform.services.peers import lineage
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.memories import NamespaceKind, NamespaceView

SHORT_ID_CHARS = 8
"""Characters of an id that stand for a workspace whose name is not known."""
KIND_LABELS = {
    NamespaceKind.WORKSPACE: "Workspace",
    NamespaceKind.TEAM: "Team",
    NamespaceKind.ORG: "Org",
}


@dataclass(frozen=True)
class Namespace:
    """One namespace: `name` is `kind:owner`, `owner_name` the name of the workspace it is called after."""

    kind: NamespaceKind
    owner: str
    owner_name: str

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.owner}"

    @property
    def label(self) -> str:
        return f"{KIND_LABELS[self.kind]} ({self.owner_name or self.owner[:SHORT_ID_CHARS]})"

    def view(self) -> NamespaceView:
        return NamespaceView(name=self.name, kind=self.kind, label=self.label)


@dataclass(frozen=True)
class Reach:
    """The namespaces of one workspace. Only the root of an organisation writes to the organisation's."""

    workspace: Namespace
    team: Namespace
    org: Namespace

    @property
    def is_root(self) -> bool:
        return self.workspace.owner == self.org.owner

    @property
    def readable(self) -> tuple[Namespace, ...]:
        return (self.workspace, self.team, self.org)

    @property
    def writable(self) -> tuple[Namespace, ...]:
        return self.readable if self.is_root else (self.workspace, self.team)

    def readable_among(self, names: list[str] | tuple[str, ...]) -> list[str]:
        """Those of `names` that may be read; all that may be read when there are none."""
        allowed = [namespace.name for namespace in self.readable]
        return [name for name in allowed if name in names] if names else allowed


def reach_of(connection: Connection, workspace_id: str) -> Reach:
    """The reach of a workspace that is there.

    The team is called after the parent, or after the workspace itself when it is a root.
    """
    chain = lineage(connection, workspace_id) or [workspace_id]
    team, root = chain[1] if len(chain) > 1 else chain[0], chain[-1]
    rows = connection.execute(
        select(workspaces.c.id, workspaces.c.name).where(workspaces.c.id.in_({workspace_id, team, root}))
    )
    names = {row.id: row.name for row in rows}
    return Reach(
        workspace=Namespace(NamespaceKind.WORKSPACE, workspace_id, names.get(workspace_id, "")),
        team=Namespace(NamespaceKind.TEAM, team, names.get(team, "")),
        org=Namespace(NamespaceKind.ORG, root, names.get(root, "")),
    )
