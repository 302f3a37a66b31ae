"""Make environments by ids and arguments, and refuse words that may name code."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pyro_seq.config.user_code import working_folder_importable
from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.games.environment.environments import first_line, flattened, in_words
from pyro_seq.games.environment.pictures import PictureForm, is_picture, pictured

if TYPE_CHECKING:
    from gymnasium import Env

MOST_CHARACTERS = 10_000  # of an environment's arguments
# arguments of gymnasium.make that are not the user's to give
OURS = ("id", "render_mode", "disable_env_checker")
# the packages that register families of environments which people name without them, by how an id
# begins: (for pip, to be imported)
FAMILIES = {
    "ALE/": ("ale-py", "ale_py"),
    "BabyAI-": ("minigrid", "minigrid"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "MinAtar/": ("minatar", "minatar.gym"),
    "dm_control/": ("shimmy[dm-control]", "shimmy"),
    "highway-": ("highway-env", "highway_env"),
    "Fetch": ("gymnasium-robotics", "gymnasium_robotics"),
}


@dataclass(frozen=True)
class Named:
    """The user's own words about a run's environment; `None` where there are none.

    A run folder or a configuration may come from somebody else. An id with a module imports that
    module, and arguments that are words may be paths or name code: neither is used unless the user
    says the same.

    Attributes:
        env: the id (`--env`).
        kwargs: the arguments, as JSON (`--env-kwargs`).
    """

    env: str | None = None
    kwargs: str | None = None

    def check_same(self, env: str, kwargs: str | None, run: object) -> None:
        """Raise `UserError` if the words name another environment than a run's."""
        if self.env is not None and self.env != env:
            raise UserError(
                f"{run} holds a run of the environment {env!r}, not of {self.env!r}: choose "
                "another --run-dir for that"
            )
        if self.kwargs is not None and environment_arguments(
            self.kwargs, "--env-kwargs"
        ) != environment_arguments(kwargs, f"{run}"):
            raise UserError(
                f"{run} was begun with --env-kwargs {shlex.quote(kwargs or '{}')}, not with "
                f"{shlex.quote(self.kwargs)}"
            )

    def check_allowed(self, env: str, kwargs: str | None, source: object) -> None:
        """Raise `UserError` if the words are missing that an environment of `source` needs.

        The message holds them.
        """
        module = self.env is None and named_by_module(env)
        words = self.kwargs is None and not _is_harmless(environment_arguments(kwargs, f"{source}"))
        if module or words:
            what = (
                "the environment of a module, which is not imported"
                if module
                else "arguments of an environment, which are not used"
            )
            missing = environment_options(env if module else None, kwargs if words else None)
            raise UserError(f"{source} names {what} unless you say so: add{missing}")


def named_by_module(env: str) -> bool:
    """Tell whether an id makes gymnasium import a module, `module:Name-v0`."""
    return ":" in env


def environment_options(env: str | None, kwargs: str | None) -> str:
    """Return the command's options that name an environment, as a shell takes them.

    Each stands after a space; empty for an environment that needs none.
    """
    named = "" if env is None or not named_by_module(env) else f" --env {shlex.quote(env)}"
    return named if kwargs is None else f"{named} --env-kwargs {shlex.quote(kwargs)}"


def options_again(env: str, kwargs: str | None, source: str = "play.env_kwargs") -> str:
    """Return the options that using a run's environment again needs."""
    return environment_options(
        env, None if _is_harmless(environment_arguments(kwargs, source)) else kwargs
    )


def environment_arguments(text: str | None, source: str) -> dict[str, Any]:
    """Read the arguments of a JSON object; `None` for none.

    Raises `UserError`, which begins with `source`, for anything else.
    """

    def no_number(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number")

    if text is None:
        return {}
    right = 'right would be a JSON object, such as {"map_name": "8x8"}'
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{source}: the environment's arguments have {len(text):,} characters, more than "
            f"{MOST_CHARACTERS:,}"
        )
    try:
        found = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source}: the environment's arguments {text[:80]!r} are no JSON ({error}); {right}"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{source}: the environment's arguments are {text[:80]!r}; {right}")
    for name in found:
        if not name.isidentifier() or name in OURS:
            why = "given by pyroseq itself" if name in OURS else "no name of an argument"
            raise UserError(f"{source}: {name!r} among the environment's arguments is {why}")
    return found


def _is_harmless(arguments: object) -> bool:
    """Whether there are but numbers and truth values in it, which can name neither a file nor
    code.
    """
    if isinstance(arguments, (dict, list)):
        return all(
            map(_is_harmless, arguments.values() if isinstance(arguments, dict) else arguments)
        )
    return arguments is None or isinstance(arguments, (bool, int, float))


def make_environment(
    name: str,
    render_mode: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    pictures: PictureForm | None = None,
) -> Env[Any, Any]:
    """Make the environment of an id with some arguments.

    A module that the id names is also looked for in the working folder. With `pictures` it is
    observed by pictures of that form, else by numbers.

    Raises `UserError` for an id that gymnasium does not know (with the nearest that it does, or the
    package that brings it), and for one whose packages are missing (with the extra of pip that
    brings them). Raises `UserError` too for an environment that cannot be made.
    """
    import gymnasium

    def made(render_mode: str | None) -> Env[Any, Any]:
        # which not every environment takes
        drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        return gymnasium.make(name, disable_env_checker=True, **dict(arguments or {}), **drawn)

    try:
        by_module = named_by_module(name)
        with _quiet(), working_folder_importable() if by_module else nullcontext():
            environment = made(render_mode)
            if pictures is None:
                return flattened(environment)
            if render_mode != "rgb_array" and not is_picture(environment.observation_space):
                environment.close()
                if render_mode is not None:
                    raise UserError(
                        f"the environment {name!r} is observed by what it draws, so that it has no "
                        "window: --render video shows it"
                    )
                environment = made("rgb_array")
            return pictured(environment, pictures, name)
    except UserError:
        raise
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        tried = f"; tried the installed packages and {Path.cwd()}" if named_by_module(name) else ""
        # which gymnasium goes on to advise of
        what = first_line(error).partition(". Environment registration")[0]
        raise UserError(
            f"the environment {name!r} needs packages that are not installed: {what}{tried}"
        ) from None
    except (
        gymnasium.error.UnregisteredEnv,
        gymnasium.error.DeprecatedEnv,
        gymnasium.error.Error,
    ) as error:
        if isinstance(error, gymnasium.error.UnregisteredEnv) or "malformed" in str(error).lower():
            raise UserError(f"gymnasium knows no environment {name!r}{_advice(name)}") from None
        raise UserError(f"the environment {name!r} cannot be made: {first_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"the environment {name!r} cannot be made: {in_words(error)}") from None


def _advice(name: str) -> str:
    """Where an id that is not known might come from, or the nearest that is."""
    import gymnasium

    own = name.rpartition(":")[2]
    for begins, (package, module) in FAMILIES.items():
        if own.startswith(begins) and not any(
            known.startswith(begins) for known in gymnasium.registry
        ):
            named = f"--env {module}:{own}"
            return (
                f": those that begin with {begins} are of the package {package} (pip install "
                f"{package}), and named with it, {named}"
            )
    family = own.rpartition("/")[0]
    if family and not any(known.startswith(f"{family}/") for known in gymnasium.registry):
        return (
            f": none begin with {family}/; name the package that registers them, --env MODULE:{own}"
        )
    known = [spec for spec in gymnasium.registry if "/" not in spec or "/" in own]
    advice = did_you_mean(own, known)
    return (
        advice
        if advice.startswith("; did you mean")
        else f"; there are {len(known)}, CartPole-v1 and Acrobot-v1 among them"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, gymnasium's advice on versions and render modes is not shown."""
    import gymnasium

    level = gymnasium.logger.min_level
    gymnasium.logger.min_level = 40
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gymnasium.logger.min_level = level
