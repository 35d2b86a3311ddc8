"""What MkDocs is told beside mkdocs.yml: where the pages are, and the pages that are made.

Pages keep the places that they have in the repository, so that one relative link works in a
checkout and on the site. The pages of the API are made from the docstrings.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import griffe
import messages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sparsedet import list_components
from sparsedet.registry import find_component

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "docs/*.md",
    "docs/images/*",
    "docs/notebooks/*.ipynb",
    "docs/theme/*.css",
    "projects/*/README.md",
    "projects/*/results.json",
    "examples/*/*.py",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
)
BOOSTS = {"docs/troubleshooting.md": 8}
PROTOCOLS = "sparsedet.modeling.parts"
STAGES = "sparsedet.modeling.stages"
PLACE = re.compile(r"^<!-- components: (\w+) -->$", re.M)
SHAPE = re.compile(r"""\w+\[Tensor, ["'] ?(.+?) ?["']\]""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation: a page for each project, and those of the API."""
    projects = sorted(each.relative_to(ROOT).as_posix() for each in ROOT.glob("projects/*/*.md"))
    for section in config.nav or []:
        for name, entries in section.items():
            if "projects" in entries and isinstance(entries, list):
                section[name] = [*entries[: entries.index("projects")], *projects]
    families = [{family: f"api/{family}.md"} for family in list_components()]
    modules = [{path: f"api/{path}.md"} for path in api_modules() if path != "sparsedet"]
    config.nav.append({"API": ["api/index.md", {"Components": families}, {"Modules": modules}]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files from their places in the repository, and add the pages of the API."""
    kept = [each for each in files if each.src_dir != config.docs_dir]
    for path in (path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))):
        source = path.relative_to(ROOT).as_posix()
        target = source.removeprefix("docs/")
        target = re.sub(r"\.md$", ".html", target).replace("README.html", "index.html")
        kept.append(
            File(source, str(ROOT), config.site_dir, use_directory_urls=False, dest_uri=target)
        )
    pages = {"index": index_page()}
    pages |= {family: family_page(family) for family in list_components()}
    pages |= {path: module_page(path) for path in api_modules() if path != "sparsedet"}
    for name, text in pages.items():
        kept.append(File.generated(config, f"api/{name}.md", content=text))
    return Files(kept)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put tables of components, and lists of messages, where a page names them.

    A message that is searched for shares its words with many pages: its paragraph comes first.
    """
    path = page.file.src_uri
    page.meta["search"] = {"boost": 0.5 if path.startswith("api/") else BOOSTS.get(path, 1)}
    markdown = markdown.replace("<!-- shapes -->", shape_table())
    return messages.with_messages(PLACE.sub(lambda found: component_table(found[1]), markdown))


# --- pages that are made


@cache
def package() -> griffe.Module:
    """The library, read and not imported."""
    found = griffe.load("sparsedet", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(found, griffe.Module)
    return found


def docstring(path: str) -> str:
    """What a module or a class says of itself, with its code as Markdown writes it."""
    found = package()[path.removeprefix("sparsedet.")].docstring
    assert found is not None, f"{path} has no docstring"
    return found.value.replace("``", "`")


def component_path(name: str) -> str:
    """Dotted path of a component."""
    return f"{find_component(name).__module__}.{name}"


def first_line(path: str) -> str:
    """What a docstring begins with, as an entry of a table."""
    return docstring(path).partition("\n")[0].replace("|", r"\|")


def component_table(family: str) -> str:
    """One line for each component of a family, with a link to its arguments."""
    rows = []
    for name in list_components()[family]:
        path = component_path(name)
        rows.append(f"| [`{name}`][{path}] | {first_line(path)} |")
    return "\n".join(["| component | what it is |", "|---|---|", *rows])


def shape_table() -> str:
    """The tensors of what the stages of a detector hand to each other, with their shapes."""
    rows = []
    for path in exports(package()[STAGES.removeprefix("sparsedet.")]):
        members = package()[path.removeprefix("sparsedet.")].attributes.values()
        found = {each.name: SHAPE.match(str(each.annotation)) for each in members}
        listed = ", ".join(f"`{name}` `[{shape[1]}]`" for name, shape in found.items() if shape)
        if listed:
            rows.append(f"| [`{path.rpartition('.')[2]}`][{path}] | {listed} |")
    return "\n".join(["| class | tensors |", "|---|---|", *rows])


def exports(module: griffe.Module) -> list[str]:
    """Dotted paths of the classes and functions that a module offers, where they are defined."""
    members = [module.members[name] for name in module.exports or []]
    targets = [each.final_target if isinstance(each, griffe.Alias) else each for each in members]
    return [each.path for each in targets if each.kind.value in ("class", "function")]


@cache
def api_modules() -> dict[str, list[str]]:
    """The modules that have a page, and what is on it: everything once, components elsewhere."""
    seen = {component_path(name) for names in list_components().values() for name in names}
    pages: dict[str, list[str]] = {}
    rooms = [each for each in package().modules.values() if each.exports]
    guests = [each for each in package()["interop"].modules.values() if each.exports]
    for module in [*rooms, *guests, package()]:
        found = [path for path in exports(module) if path not in seen]
        seen.update(found)
        pages[module.path] = found
    protocols = package()[PROTOCOLS.removeprefix("sparsedet.")]
    public = [each for each in protocols.classes.values() if each.is_public]
    pages[PROTOCOLS] = [each.path for each in public if each.path not in seen]
    return dict(sorted(pages.items()))


def index_page() -> str:
    """What `sparsedet` itself offers."""
    rows = [
        f"| [`{path.rpartition('.')[2]}`][{path}] | {first_line(path)} |"
        for path in exports(package())
    ]
    return "\n".join(
        [
            "# API",
            "",
            "These pages are made from the docstrings. `from sparsedet import ...` imports:",
            "",
            "| name | what it is |",
            "|---|---|",
            *rows,
            "",
            "Each component is on the page of its family. The protocols for components of your own",
            f"are on the page of [{PROTOCOLS}]({PROTOCOLS}.md).",
            *(f"\n::: {each}" for each in api_modules()["sparsedet"]),
        ]
    )


def family_page(family: str) -> str:
    """Every component of a family with its arguments and its call."""
    entries = [f"::: {component_path(name)}" for name in list_components()[family]]
    return "\n\n".join([f"# Components: {family}", component_table(family), *entries])


def module_page(path: str) -> str:
    """What a module offers."""
    entries = [f"::: {each}" for each in api_modules()[path]]
    return "\n\n".join([f"# {path}", docstring(path), *entries])
