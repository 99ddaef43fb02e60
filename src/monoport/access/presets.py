"""The roles that every new cluster has, as documents.

Belongs here: access, editor, auditor. Does not: storing them (auth).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monoport.access.resources import Role

_DOCUMENTS: Final[tuple[dict[str, Any], ...]] = (
    {
        "kind": "role",
        "version": "v1",
        "metadata": {"name": "access", "description": "reach every resource as the logins and users of one's own"},
        "spec": {
            "allow": {
                "logins": ["{{internal.logins}}"],
                "node_labels": {"*": "*"},
                "db_labels": {"*": "*"},
                "db_users": ["{{internal.db_users}}"],
                "db_names": ["{{internal.db_names}}"],
                "app_labels": {"*": "*"},
                "kubernetes_labels": {"*": "*"},
                "kubernetes_users": ["{{internal.kubernetes_users}}"],
                "kubernetes_groups": ["{{internal.kubernetes_groups}}"],
            },
            "options": {
                "forward_agent": True,
                "port_forwarding": True,
                "remote_port_forwarding": True,
                "unix_forwarding": True,
                "remote_unix_forwarding": True,
            },
        },
    },
    {
        "kind": "role",
        "version": "v1",
        "metadata": {"name": "editor", "description": "manage users, roles and every other resource"},
        "spec": {
            "allow": {
                "rules": [
                    {
                        "resources": ["user", "role", "token", "lock", "node", "db", "app", "kube", "trusted_cluster"],
                        "verbs": ["*"],
                    }
                ]
            }
        },
    },
    {
        "kind": "role",
        "version": "v1",
        "metadata": {"name": "auditor", "description": "read events, recordings and sessions"},
        "spec": {"allow": {"rules": [{"resources": ["event", "recording", "session"], "verbs": ["read", "list"]}]}},
    },
)

PRESETS: Final[Mapping[str, Role]] = {
    role.name: role for role in (Role.model_validate(document) for document in _DOCUMENTS)
}
