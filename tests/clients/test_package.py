"""The TypeScript client as a package: what it contains, how large it is in a page, and what its README shows."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.typescript import HOME, node, run_node

LARGEST_BUNDLE_OCTETS = 60_000  # compressed, with @hpke/core


def npm(*arguments: str, cwd: Path) -> str:
    found = shutil.which("npm")
    if found is None:
        pytest.skip("npm is not installed")
    done = subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_installs_and_can_be_imported_with_its_types(tmp_path: Path) -> None:
    node()
    (made,) = json.loads(npm("pack", "--json", "--pack-destination", str(tmp_path), cwd=HOME))
    paths = {file["path"] for file in made["files"]}
    assert {"README.md", "package.json", "dist/index.js", "dist/index.d.ts", "src/index.ts"} <= paths
    assert not [path for path in paths if path.startswith(("test/", "node_modules/"))]
    app = tmp_path / "app"
    app.mkdir()
    (app / "package.json").write_text('{"private": true, "type": "module"}')
    hpke = [f"file:{HOME / 'node_modules' / '@hpke' / name}" for name in ("core", "common")]
    npm("install", "--offline", "--no-audit", "--no-fund", *hpke, str(tmp_path / made["filename"]), cwd=app)
    (app / "app.mjs").write_text(
        'import { Device, toHex } from "mimids-client";\n'
        'const device = new Device({ url: "http://127.0.0.1:1", token: "x" });\n'
        "await device.me().catch((error) => console.log(error.name, toHex(new Uint8Array(1))));\n"
    )
    assert run_node(str(app / "app.mjs")) == "Unreachable 00\n"


def test_the_client_is_small_in_a_page(tmp_path: Path) -> None:
    node()
    bundle = tmp_path / "bundle.js"
    esbuild = HOME / "node_modules" / "esbuild" / "bin" / "esbuild"
    options = ["--bundle", "--minify", "--format=esm", "--target=es2022", f"--outfile={bundle}"]
    subprocess.run([str(esbuild), "dist/index.js", *options], cwd=HOME, check=True, capture_output=True)
    code = bundle.read_bytes()
    assert len(gzip.compress(code)) < LARGEST_BUNDLE_OCTETS
    assert b"eval(" not in code
    assert b"new Function" not in code


def test_each_example_of_the_readme_has_the_right_types(tmp_path: Path) -> None:
    blocks = re.findall(r"```ts\n(.*?)```", (HOME / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 2
    node()
    for number, block in enumerate(blocks):
        (tmp_path / f"example-{number}.ts").write_text(block)
    options = json.loads((HOME / "tsconfig.json").read_text(encoding="utf-8"))
    options["compilerOptions"] |= {
        "noEmit": True,
        "rootDir": "/",
        "paths": {"mimids-client": [str(HOME / "dist" / "index.d.ts")]},
        "module": "preserve",
    }
    options["include"] = ["*.ts"]
    (tmp_path / "tsconfig.json").write_text(json.dumps(options))
    run_node(str(HOME / "node_modules" / "typescript" / "bin" / "tsc"), "-p", str(tmp_path))


def test_the_package_is_what_the_readme_says_it_is() -> None:
    package = json.loads((HOME / "package.json").read_text(encoding="utf-8"))
    assert (package["name"], package["license"], package["type"]) == ("mimids-client", "Apache-2.0", "module")
    assert set(package["dependencies"]) == {"@hpke/core"}


def test_its_own_tests_pass() -> None:
    run_node("--test", "test/units.test.mjs")
