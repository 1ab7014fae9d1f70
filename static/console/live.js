// The live feed of an app: one socket for the whole console, and one channel for each app that is watched.
//
// The feed is a topic of Herald itself, so a connection that was lost continues where it was. The login mints the token, and
// mints a new one whenever a join is refused.

import { recover } from "./herald-recovery.mjs"
import { Socket } from "./phoenix.mjs"
import { post } from "./api.js"
import { pause } from "./dom.js"

/** The longest pause between two requests for a token. The first one is a second. */
const PAUSE_MS_MAX = 30_000

class Live {
  constructor() {
    this.socket = null
    this.pass = null
  }

  /**
   * Watches an app until `signal` aborts. `tell` has the functions
   *
   * - `events({ events, dropped })`: events of the app, and the number of events that were left out,
   * - `sample({ at, sessions, publications, deliveries })`: the app's rates, once per second,
   * - `state(word)`: `connecting`, `live`, `reconnecting` or `ended`,
   * - `gap({ complete, reason, replayed, ms })`: the feed continues after an interruption of `ms` milliseconds,
   * - `renamed(slug)`: the app has another slug now,
   * - `ended()`: no app has this slug any more, or the login may no longer watch it.
   */
  async watch(slug, signal, tell) {
    tell.state("connecting")
    const isReady = await this.renew(slug, signal, tell)
    if (!isReady || signal.aborted) return
    const socket = this.open()
    new Watch(this, socket, slug, signal, tell)
  }

  /** Asks for a token. Returns whether there is one; a session that has ended leads to the login by itself. */
  async renew(slug, signal, tell) {
    for (let pauseMs = 1000; !signal.aborted; pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX)) {
      try {
        this.pass = (await post("/console/live", { app: slug }, { isWrite: false })).data
        return true
      } catch (error) {
        if (error.isExpired || signal.aborted) break
        if ([403, 404].includes(error.status)) {
          tell.state("ended")
          tell.ended()
          break
        }
        await pause(pauseMs)
      }
    }
    return false
  }

  open() {
    this.socket ??= new Socket("/socket", { heartbeatIntervalMs: 20_000 })
    this.socket.connect()
    return this.socket
  }

  close() {
    this.socket?.disconnect()
    this.socket = null
    this.pass = null
  }
}

/** One app that is watched. */
class Watch {
  constructor(live, socket, slug, signal, tell) {
    Object.assign(this, { live, slug, signal, tell, lostAt: null, isEnded: false, isRenewing: false })
    this.channel = socket.channel(live.pass.topic, () => ({ guardian_token: live.pass.token }))
    recover(this.channel, {
      complete: recovery => this.joined(true, recovery),
      incomplete: recovery => this.joined(false, recovery),
    })
    this.channel.on("events", batch => tell.events(batch))
    this.channel.on("sample", sample => {
      tell.sample(sample)
      if (sample.app !== slug) tell.renamed(sample.app)
    })
    this.channel.on("deleted", () => this.end())
    this.channel.onError(() => this.lost())
    this.channel.onClose(() => this.lost())
    this.channel
      .join()
      .receive("ok", () => tell.state("live"))
      .receive("error", () => this.renew())
    signal.addEventListener("abort", () => this.channel.leave())
  }

  lost() {
    if (this.signal.aborted || this.lostAt !== null || this.isEnded) return
    this.lostAt = Date.now()
    this.tell.state("reconnecting")
  }

  /** Gets a new token, unless that is under way. The channel retries by itself, and uses that token. */
  async renew() {
    if (this.isRenewing) return
    this.isRenewing = true
    const isReady = await this.live.renew(this.slug, this.signal, this.tell)
    this.isRenewing = false
    if (!isReady) this.leave()
  }

  end() {
    this.leave()
    this.tell.state("ended")
    this.tell.ended()
  }

  leave() {
    this.isEnded = true
    this.channel.leave()
  }

  joined(complete, { reason, replayed }) {
    if (this.lostAt === null) return
    this.tell.gap({ complete, reason, replayed, ms: Date.now() - this.lostAt })
    this.lostAt = null
  }
}

export const live = new Live()
