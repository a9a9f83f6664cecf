"""What the loopback hub does with uploads: who asks, repositories, files in git and in LFS, commits.

Written from what huggingface_hub 2.4 sends where Xet is off; never compared with the live hub.
"""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_loopback"
"""The only token that is known; it belongs to the user `me`."""


@dataclass
class Uploads:
    """What was made and uploaded."""

    visibility: dict[str, str] = field(default_factory=dict)
    """Repositories that were made -> as what."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> file -> its content, once it is committed."""
    refuse: set[str] = field(default_factory=set)
    """Repositories whose commits are answered with 403."""
    lfs_from: int = 100_000
    _blobs: dict[str, bytes] = field(default_factory=dict)

    def answer(self, method: str, parts: list[str], token: str, body: bytes, url: str) -> tuple[int, Any] | None:
        """Status and JSON; None: this request is no upload."""
        known = token == f"Bearer {TOKEN}"
        match [method, *parts]:
            case ["GET", "api", "whoami-v2"]:
                return (200, {"type": "user", "name": "me", "auth": {}}) if known else (401, {"error": "who?"})
            case ["POST", "api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                self.visibility.setdefault(name, asked.get("visibility", "public"))
                return (200, {"url": f"{url}/{name}", "name": name}) if known else (401, {"error": "who?"})
            case ["POST", "api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["POST", "api", "models", _, _, "preupload", _]:
                return 200, {"files": [self._mode(file) for file in json.loads(body)["files"]]}
            case ["POST", _, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                return 200, {"transfer": "basic", "objects": [_upload(o, url) for o in json.loads(body)["objects"]]}
            case ["PUT", "lfs", oid]:
                self._blobs[oid] = body
                return 200, {}
            case ["POST", "api", "models", owner, name, "commit", _]:
                return self._commit(f"{owner}/{name}", body, url) if known else (401, {"error": "who?"})
        return None

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= self.lfs_from else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _commit(self, repository: str, body: bytes, url: str) -> tuple[int, Any]:
        if repository in self.refuse:
            return 403, {"error": "no"}
        made = self.files.setdefault(repository, {})
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                made[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                made[item["value"]["path"]] = self._blobs[item["value"]["oid"]]
        return 200, {"commitUrl": f"{url}/{repository}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}


def _upload(asked: dict[str, Any], url: str) -> dict[str, Any]:
    return {**asked, "actions": {"upload": {"href": f"{url}/lfs/{asked['oid']}"}}}
