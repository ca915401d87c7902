"""Who takes part in the embedded world, how good each is, and what each reveals on chain.

Belongs here: the table of miners, their names on chain and in the registry, what they reveal at which block.
Does not: what their files look like (`objects`, `reliefs`), serving anything (`world`, `image`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import OperatorError
from gen404_dagster.simulation.chance import generator, hex_digest, hotkey_of
from gen404_dagster.simulation.parameters import WorldParameters

COMPETITION = "sim"
BLOCKS_PER_DAY = 7200
WINDOW_END = 300  # blocks into each day
KEPT_PER_HOTKEY = 10  # commitments of a hotkey that the chain remembers
DEAD_CDN = "http://127.0.0.1:9"  # the discard port: nobody listens there

LEADER_SKILL = 0.35  # of the first leader's image
BASE, FILES = "base", "real-files"

Revealed = dict[Hotkey, list[tuple[Block, str]]]


@dataclass(frozen=True)
class Role:
    """A line of the cast. `skills`: (submitted, image) per version; the last stays."""

    name: str
    role: str
    offset: Block  # blocks into the day at which it reveals: the order of play
    skills: tuple[tuple[float, float], ...]
    repo: str = ""
    style: str = "json"  # how it writes its commitments: json, quotes (single), separate
    build: str = "success"
    bad_files: bool = False
    cdn_down: bool = False
    source_exists: bool = True


# By importance: `miners` of them take part.
ROLES = (
    Role("best", "honest, the best", 160, ((0.92, 0.92),)),
    Role("cheater", "submits files that its image does not make", 130, ((1.0, 0.35),)),
    Role("weaker", "honest", 100, ((0.62, 0.62),), repo="sim-weaker/mesh.v2", style="separate"),
    Role("messy", "honest, but three of its files are unusable", 60, ((0.7, 0.7),), style="quotes", bad_files=True),
    Role("cdn-down", "its CDN does not answer", 80, ((0.7, 0.7),), cdn_down=True),
    Role("build-fails", "good, but its image cannot be built", 20, ((0.78, 0.78),), build="failure"),
    Role("copycat", "good, but its repository does not exist", 40, ((0.8, 0.8),), build="failure", source_exists=False),
    Role("rising", "honest, better every day", 190, ((0.5, 0.5), (0.7, 0.7), (0.97, 0.97))),
)
LATER_STYLES = ("json", "separate", "quotes")


def _later_role(number: int) -> Role:
    """Further honest miners, each weaker than the one before; they reveal last."""
    skill = round(0.55 * 0.94**number, 4)
    return Role(
        f"honest-{number + 1}",
        "honest",
        min(200 + 7 * number, 270),
        ((skill, skill),),
        style=LATER_STYLES[number % len(LATER_STYLES)],
    )


@dataclass(frozen=True)
class Miner:
    """A role in a world: with a hotkey, commits, and the operator's skills."""

    role: Role
    hotkey: Hotkey
    seed: int
    files: bool = False  # serves a folder's files instead of its own

    @property
    def name(self) -> str:
        return self.role.name

    @property
    def repo(self) -> str:
        return self.role.repo or f"sim-{self.name}/image-to-3d"

    def version_at(self, block: Block) -> int:
        """A new version a day, until there is none better."""
        return min(block // BLOCKS_PER_DAY, len(self.role.skills) - 1)

    def commit(self, version: int) -> str:
        return hex_digest(self.seed, self.hotkey, version)

    def version_of(self, commit_start: str) -> int | None:
        """The version whose commit starts so."""
        versions = range(len(self.role.skills))
        return next((version for version in versions if self.commit(version).startswith(commit_start)), None)


@dataclass(frozen=True)
class Image:
    """What a docker image generates with."""

    miner: Miner
    version: int

    @property
    def skill(self) -> float:
        return self.miner.role.skills[self.version][1]


@dataclass(frozen=True)
class Cast:
    """Everyone in a world with these parameters, served on this port."""

    parameters: WorldParameters
    port: int

    @cached_property
    def miners(self) -> dict[Hotkey, Miner]:
        """Those with submissions, by importance."""
        roles = [*ROLES, *(_later_role(number) for number in range(max(0, self.parameters.miners - len(ROLES))))]
        chosen = roles[: self.parameters.miners]
        names = {role.name for role in chosen} | {BASE}
        unknown = sorted(set(self.parameters.skills) - names)
        if unknown:
            raise OperatorError(f"no miner is called {', '.join(unknown)}: there are {', '.join(sorted(names))}")
        miners = [self._miner(role) for role in chosen]
        if self.parameters.miner_from:
            miners.append(self._miner(Role(FILES, "serves the files of a folder", 280, ((1.0, 1.0),)), files=True))
        return {miner.hotkey: miner for miner in miners}

    @cached_property
    def base(self) -> Miner:
        """The organiser's own miner: the first leader."""
        return self._miner(Role(BASE, "the first leader", 0, ((LEADER_SKILL, LEADER_SKILL),)))

    def _miner(self, role: Role, files: bool = False) -> Miner:
        skill = self.parameters.skills.get(role.name)
        if skill:
            # As many versions as before: a new commit each day, equally good.
            role = Role(**{**role.__dict__, "skills": (skill,) * len(role.skills)})
        return Miner(role, hotkey_of(self.parameters.seed, role.name), self.parameters.seed, files)

    def named(self, name: str) -> Miner:
        return next(miner for miner in [*self.miners.values(), self.base] if miner.name == name)

    # --- registry ---

    @property
    def first_image(self) -> str:
        return f"registry.local/competition/{self.base.hotkey[:10]}:{self.base.commit(0)[:7]}-base-miner".lower()

    def image(self, name: str) -> Image | None:
        """The image of this name, in whatever round it was built; None when no build ever made it."""
        if name == self.first_image:
            return Image(self.base, 0)
        found = re.fullmatch(rf"registry\.local/competition/(\w{{10}}):([0-9a-f]{{7}})-{COMPETITION}-\d+", name)
        if not found:
            return None
        for miner in self.miners.values():
            version = miner.version_of(found[2])
            if miner.hotkey[:10].lower() == found[1] and version is not None and miner.role.build == "success":
                return Image(miner, version)
        return None

    # --- chain ---

    @property
    def owner(self) -> Hotkey:
        """The subnet's owner."""
        return hotkey_of(self.parameters.seed, "owner")

    @property
    def validator(self) -> Hotkey:
        """Who sets weights."""
        return hotkey_of(self.parameters.seed, "validator")

    @property
    def uids(self) -> dict[Hotkey, int]:
        """Who is on the subnet: its owner, the organiser's miner, a validator and the miners."""
        return {hotkey: uid for uid, hotkey in enumerate([self.owner, self.base.hotkey, self.validator, *self.miners])}

    def revealed(self, block: Block) -> Revealed:
        """Everything revealed up to a block: the last ten commitments of each hotkey."""
        days = range(max(0, block // BLOCKS_PER_DAY - KEPT_PER_HOTKEY), block // BLOCKS_PER_DAY + 1)
        revealed: Revealed = {}
        for day in days:
            for hotkey, offset, text in self._day(day):
                if day * BLOCKS_PER_DAY + offset <= block:
                    revealed.setdefault(hotkey, []).append((day * BLOCKS_PER_DAY + offset, text))
        return {hotkey: entries[-KEPT_PER_HOTKEY:] for hotkey, entries in revealed.items()}

    def _day(self, day: int) -> Iterator[tuple[Hotkey, Block, str]]:
        """(hotkey, offset in the day, text) of a day's commitments, each hotkey's in order."""
        for miner in self.miners.values():
            yield from self._commitments(miner, day)
        for number, (name, text) in enumerate(self._malformed()):
            yield hotkey_of(self.parameters.seed, "malformed", name), 25 + 11 * number, text
        if day == 0:
            late = hotkey_of(self.parameters.seed, "late")
            # Its commit comes after the window of round 0 has closed, the rest before: no round has all three.
            yield late, 100, json.dumps({"repo": "sim-late/image-to-3d", "cdn_url": self.cdn_url(late)})
            yield late, WINDOW_END + 50, json.dumps({"commit": hex_digest(self.parameters.seed, late)})

    def _commitments(self, miner: Miner, day: int) -> Iterator[tuple[Hotkey, Block, str]]:
        cdn = f"{DEAD_CDN}/{miner.hotkey[:8]}" if miner.role.cdn_down else self.cdn_url(miner.hotkey)
        commit = miner.commit(miner.version_at(day * BLOCKS_PER_DAY))
        fields = {"repo": miner.repo, "commit": commit, "cdn_url": cdn}
        last = miner.role.offset
        match miner.role.style:
            case "separate":
                for before, name in zip((5, 3, 0), ("cdn_url", "repo", "commit"), strict=True):
                    yield miner.hotkey, last - before, json.dumps({name: fields[name]})
            case "quotes":
                yield miner.hotkey, last, str(fields)
            case _:
                yield miner.hotkey, last, json.dumps(fields)

    def cdn_url(self, hotkey: Hotkey) -> str:
        return f"http://127.0.0.1:{self.port}/cdn/{hotkey}"

    def _malformed(self) -> Iterator[tuple[str, str]]:
        """(name, text) of commitments that are none. Each comes from its own hotkey, every day."""
        commit, cdn = hex_digest(self.parameters.seed, "malformed"), self.cdn_url("x")
        good = {"repo": "sim/malformed", "commit": commit, "cdn_url": cdn}
        yield "not JSON", "repo=sim/malformed commit=" + commit
        yield "numeric repo", json.dumps(good | {"repo": 404})
        yield "list", json.dumps([good])
        yield "null", "null"
        yield "missing field", json.dumps({"repo": good["repo"], "commit": commit})
        yield "file URL", json.dumps(good | {"cdn_url": "file:///etc"})
        # As clouds are really asked for credentials; the query makes it malformed before anything connects.
        metadata = "http://169.254.169.254/computeMetadata/v1/?recursive=true"
        yield "metadata URL", json.dumps(good | {"cdn_url": metadata})
        yield "credentials", json.dumps(good | {"cdn_url": cdn.replace("://", "://user:secret@")})
        yield "NaN", json.dumps(good | {"repo": float("nan")})
        yield "upper-case commit", json.dumps(good | {"commit": commit.upper()})
        yield "path in repo", json.dumps(good | {"repo": "../../etc"})
        yield "long", json.dumps(good | {"note": "x" * 5000})

    def describe(self) -> list[dict[str, object]]:
        """For humans and tests; the pipeline never reads it."""
        return [
            {
                "name": miner.name,
                "hotkey": miner.hotkey,
                "role": miner.role.role,
                "repo": miner.repo,
                "reveals_at": miner.role.offset,
                "skills": [{"submitted": submitted, "image": image} for submitted, image in miner.role.skills],
            }
            for miner in [*self.miners.values(), self.base]
        ]


def messy_files(simulation_seed: int, hotkey: Hotkey, round_seed: int, stems: list[str]) -> dict[str, str]:
    """Which of a messy miner's files are unusable, and how."""
    chosen = generator("messy", simulation_seed, hotkey, round_seed).permutation(len(stems))
    kinds = ("garbage", "oversized", "outside the cube")
    return {stems[int(place)]: kind for place, kind in zip(chosen, kinds, strict=False)}
