// Recovery for channels of phoenix.js: after a reconnect, Herald replays what the channel has missed.
//
//   import { recover } from "/herald-recovery.mjs"
//
//   const channel = socket.channel("private:shop:room-1", { guardian_token: token })
//   recover(channel, {
//     since: document.querySelector("meta[name=herald-position]")?.content,
//     incomplete: ({ reason }) => fetchRoomAnew(),
//   })
//   channel.join()
//
// The module works with every version of phoenix.js from 1.2.1 on, over both transports. It has no dependency: copy this
// file, or import it from your Herald. docs/history.md describes what Herald promises.

const POSITION_EVENT = "herald_position"
const REPLY_EVENTS = /^(phx_reply$|chan_reply_)/

/**
 * Makes a channel recover by itself. Call it once for each channel, before `channel.join()`.
 *
 * Options, none of which is required:
 *
 * - `since`: the position after which the first join wants everything replayed, such as the one that the application has
 *   printed into the page. Without it the first join replays nothing.
 * - `history`: how many of the newest events to replay if there is no position, or if the gap cannot be closed.
 * - `storage`: the storage that keeps the position across reloads of the page, such as `sessionStorage`. Only for pages that keep
 *   their data there, too; a page that is rendered anew passes `since`, which has priority over the stored position.
 * - `key`: the key in `storage`; `herald:<topic>` without it.
 * - `complete({ position, replayed })`: the join has succeeded, and nothing is missing. `replayed` events follow.
 * - `incomplete({ reason, position, replayed })`: the join has succeeded, but events are missing. The page should fetch its
 *   data anew. The reason is `expired`, `epoch`, `unknown`, `too_much` or `off`; `replayed` events of `history` follow.
 * - `replayed({ event, payload, position })`: called for each replayed event, before the channel's own callbacks. The
 *   `position` of a binary payload is null.
 *
 * @returns {Recovery}
 */
export function recover(channel, options = {}) {
  return new Recovery(channel, options)
}

/** The state of one channel: `position`, and `isReplaying` while the callbacks of a replayed event run. */
class Recovery {
  constructor(channel, { since, history, storage, key = `herald:${channel.topic}`, complete, incomplete, replayed }) {
    if (channel.joinedOnce) throw new Error("recover(channel) must be called before channel.join()")
    Object.assign(this, { history, storage, key, complete, incomplete, replayed })
    this.position = since || this.stored() || ""
    this.isReplaying = false
    this.remaining = 0
    addJoinParams(channel.joinPush, () => this.joinParams())
    wrapOnMessage(channel, (event, payload, ref) => this.receive(event, payload, ref))
    channel.joinPush.receive("ok", response => this.joined(response))
  }

  joinParams() {
    return this.history === undefined ? { since: this.position } : { since: this.position, history: this.history }
  }

  /** Handles the reply to a join. The reply of a server without recovery has no member `recovery`. */
  joined(response) {
    const recovery = response?.recovery
    if (!recovery) return
    const { complete, reason, position, replayed } = recovery
    this.isReplaying = false
    this.remaining = replayed
    this.keep(position)
    if (complete) this.complete?.({ position, replayed })
    else this.incomplete?.({ reason, position, replayed })
  }

  /** Handles a message of the channel, before the page does. */
  receive(event, payload, ref) {
    const position = positionIn(ref)
    // The position of a binary payload is in an event that follows it.
    const isPublication = event !== POSITION_EVENT && (position !== null || isBinary(event, payload))
    if (isPublication) this.count(event, payload, position)
    if (position !== null) this.keep(position)
  }

  count(event, payload, position) {
    this.isReplaying = this.remaining > 0
    if (!this.isReplaying) return
    this.remaining -= 1
    this.replayed?.({ event, payload, position })
  }

  keep(position) {
    this.position = position
    try {
      this.storage?.setItem(this.key, position)
    } catch {
      // The storage is full or forbidden. The position is still kept for reconnects.
    }
  }

  stored() {
    try {
      return this.storage?.getItem(this.key)
    } catch {
      return null
    }
  }
}

/** Adds parameters to each join. The page's own are an object until phoenix.js 1.3, and a function from 1.4 on. */
function addJoinParams(joinPush, added) {
  const given = joinPush.payload
  const merged = () => ({ ...(typeof given === "function" ? given() : given), ...added() })
  Object.defineProperty(joinPush, "payload", { get: () => (typeof given === "function" ? merged : merged()) })
}

/** Sees each message before the channel's `onMessage`, which the page may set before or after. */
function wrapOnMessage(channel, see) {
  let own = channel.onMessage
  const wrapped = (...message) => {
    see(...message)
    return own.apply(channel, message)
  }
  Object.defineProperty(channel, "onMessage", {
    get: () => wrapped,
    set: onMessage => (own = onMessage),
  })
}

/** The position in the `ref` of a message, or null. The refs that phoenix.js itself makes have no colon. */
function positionIn(ref) {
  return typeof ref === "string" && ref.includes(":") ? ref : null
}

function isBinary(event, payload) {
  return !REPLY_EVENTS.test(event) && Object.prototype.toString.call(payload) === "[object ArrayBuffer]"
}
