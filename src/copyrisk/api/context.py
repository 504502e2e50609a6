"""What the routes work with: one of each part, made once a process."""

from dataclasses import dataclass

import redis.asyncio

from copyrisk.api.access import Access
from copyrisk.api.asking import Asker
from copyrisk.api.desk import Desk
from copyrisk.api.feeds import Feeds
from copyrisk.api.pool import Pool
from copyrisk.settings import Settings
from copyrisk.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Api:
    """The parts.

    Attributes
    ----------
    redis : redis.asyncio.Redis
        Replies are bytes; not for commands that block.
    desk : Desk or None
        `None` where the settings leave it out.
    """

    settings: Settings
    access: Access
    asker: Asker
    pool: Pool
    feeds: Feeds
    desk: Desk | None
    redis: "redis.asyncio.Redis"
    vitals: Vitals
