// The demo page: joins `public:<app>`, shows what arrives there, and sends by channel push.
//
// The page holds no secret; a pasted token stays in this window's memory.

import { wireCopyButtons } from "./copy.js"
import { Feed, countWords, heardOnChannel, heardOnScope, isControl } from "./feed.js"
import { recover } from "./herald-recovery.mjs"
import { Socket } from "./phoenix.mjs"

const LINE_BREAK = " \\\n  "
const OFFLINE = "Not sent: this page is not connected right now."
const NAME_KEY = "herald.name"
const PRIVATE_CHANNEL = "room-1"
const RECONNECT_MS = [100, 250, 500, 1000, 2000, 3000]
const RECONNECT_MAX_MS = 5000

/** The time for which a connection that was cut by hand stays closed, and its close code. */
const CUT_MS = 10_000
const CUT_CODE = 4000

const byId = id => document.getElementById(id)

// ---------------------------------------------------------------- what is refused

const REFUSALS = {
  authentication_required: "This topic needs a token whose listen claim names it",
  invalid_token: "The token is not valid for this app",
  token_expired: "The token has expired",
  token_not_yet_valid: "The token is not valid yet",
  invalid_csrf: "The token is bound to a CSRF value, and that value is missing or different",
  "unmatched topic": "No active app answers to this topic",
  "origin not allowed": "The app does not accept pages from this address",
}

/** The reason of a refused join in words, with the server's own word in brackets. */
function refusal(response) {
  const code = typeof response === "string" ? response : response?.error ?? response?.reason
  const words = REFUSALS[code] ?? "The server refused"
  return code ? `${words} (${code}).` : `${words}.`
}

/** Says why a push was refused; the articles' contract is an empty response for "not permitted". */
function pushRefusal(response) {
  return response?.reason ? `Not sent: ${response.reason}.` : "Not sent: publishing here is not permitted."
}

// ---------------------------------------------------------------- the connection, in words

/** Keeps the state of the socket and the channel, and shows it. */
class ConnectionState {
  constructor() {
    this.socket = "connecting" // connecting, open, lost
    this.join = "joining" // joining, joined, refused, closed
    this.refusal = ""
    this.attempts = 0
    this.retryAt = 0
    this.lostAt = 0
    this.isCut = false // by hand
    // Only the countdown needs a clock; every other change calls `show` itself.
    setInterval(() => this.socket === "lost" && this.showDetail(), 500)
  }

  change(known) {
    Object.assign(this, known)
    this.show()
  }

  get isLive() {
    return this.socket === "open" && this.join === "joined"
  }

  show() {
    const [state, word] = this.word()
    // A status region that is rewritten with the same word would be read aloud again.
    if (byId("state").dataset.state !== state) byId("state").dataset.state = state
    if (byId("state-word").textContent !== word) byId("state-word").textContent = word
    byId("send").setAttribute("aria-disabled", String(!this.isLive))
    byId("cut").hidden = !this.isCut && !this.isLive
    byId("cut").textContent = this.isCut ? "Reconnect now" : "Cut the connection"
    if (this.isLive && byId("send-note").textContent === OFFLINE) say(byId("send-note"), "")
    this.showDetail()
  }

  word() {
    if (this.isCut) return ["reconnecting", "Cut off"]
    if (this.socket === "lost") return ["reconnecting", "Reconnecting"]
    if (this.socket === "connecting") return ["connecting", "Connecting"]
    if (this.join === "joined") return ["live", "Live"]
    if (this.join === "refused") return ["refused", "Refused"]
    if (this.join === "closed") return ["refused", "Closed"]
    return ["connecting", "Joining"]
  }

  showDetail() {
    byId("state-detail").textContent = this.detail()
  }

  detail() {
    if (this.isCut) return `You have cut the connection. What is sent now arrives later. ${retryWords(this.retryAt)}`
    if (this.socket === "lost") return `${lossWords()} ${retryWords(this.retryAt)} Attempt ${this.attempts}.`
    if (this.socket === "connecting") return "Opening a socket to this server."
    if (this.join === "joined") return `Joined ${topic}. What is sent here arrives in every window.`
    if (this.join === "refused") return `${this.refusal} Asking again now and then.`
    if (this.join === "closed") return "The server closed this channel. Reload to join again."
    return `Joining ${topic}.`
  }
}

function lossWords() {
  return navigator.onLine === false ? "This device is offline." : "The server does not answer."
}

function retryWords(retryAt) {
  const seconds = Math.ceil((retryAt - Date.now()) / 1000)
  return seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now."
}

// ---------------------------------------------------------------- this window's app and channel

const query = new URLSearchParams(location.search)
const app = query.get("app") || "test-app"
const channelName = query.get("channel") || "foo-topic"
const topic = `public:${app}`
const channelEvent = `${channelName}:msg`
const broadcastEvent = "msg"

const state = new ConnectionState()
const feed = new Feed(byId("feed"), showCounts)

/** Opens the socket; phoenix.js itself reconnects and joins again. */
function openSocket() {
  const socket = new Socket("/socket", {
    reconnectAfterMs: tries => {
      const wait = state.isCut ? CUT_MS : RECONNECT_MS[tries - 1] ?? RECONNECT_MAX_MS
      Object.assign(state, { attempts: tries, retryAt: Date.now() + wait })
      return wait
    },
  })
  socket.onOpen(() => state.change({ socket: "open", isCut: false }))
  socket.onClose(() => state.change({ socket: "lost", lostAt: state.lostAt || Date.now() }))
  return socket
}

/** Closes the connection as if it had broken, or ends the wait for the next one. */
function wireCut(socket) {
  byId("cut").addEventListener("click", () => {
    if (state.isCut) {
      socket.reconnectTimer.reset()
      socket.disconnect(() => socket.connect())
    } else if (state.isLive) {
      state.change({ isCut: true })
      socket.conn.close(CUT_CODE, "cut by hand")
    }
  })
}

function joinApp(socket) {
  const channel = socket.channel(topic, {})
  let gap = ""
  const recovery = recover(channel, {
    complete: ({ replayed }) => (gap = recoveredWords(replayed)),
    incomplete: ({ reason }) => (gap = `Some of what was sent in between is missing (${reason}).`),
  })
  // A join of a whole scope receives the events of all its channels, with any name.
  channel.onMessage = (event, payload) => {
    if (!isControl(event)) feed.add(heardOnScope(event, channelName), payload, recovery)
    return payload
  }
  channel.onError(() => state.change({ join: "joining" }))
  channel.onClose(() => state.change({ join: "closed" }))
  channel.join()
    .receive("ok", () => {
      if (state.lostAt) feed.mark(`${absenceWords(state.lostAt)} ${gap}`)
      state.change({ join: "joined", lostAt: 0 })
    })
    .receive("error", response => state.change({ join: "refused", refusal: refusal(response) }))
  return channel
}

/** Shows the number of events, and offers those of other channels once there are any. */
function showCounts({ channel, broadcast, elsewhere }) {
  const areShown = byId("feed").dataset.others === "shown"
  byId("feed-count").textContent = countWords({ channel, broadcast })
  byId("feed-empty").hidden = channel + broadcast > 0 || (areShown && elsewhere > 0)
  byId("others").hidden = elsewhere === 0
  byId("others-count").textContent = `${elsewhere} ${areShown ? "" : "more "}on other channels`
  byId("others-toggle").textContent = areShown ? "Hide" : "Show"
}

function wireOthers() {
  byId("others-toggle").addEventListener("click", () => {
    const { dataset } = byId("feed")
    dataset.others = dataset.others === "shown" ? "hidden" : "shown"
    showCounts(feed.received)
  })
}

function absenceWords(lostAt) {
  const seconds = Math.max(1, Math.round((Date.now() - lostAt) / 1000))
  return `Back after ${seconds} s.`
}

function recoveredWords(count) {
  if (count === 0) return "Nothing was missed."
  return count === 1 ? "1 event was recovered." : `${count} events were recovered.`
}

function wireCompose(channel) {
  const note = byId("send-note")
  byId("compose").addEventListener("submit", submit => {
    submit.preventDefault()
    const field = byId("message")
    const message = field.value
    const name = byId("name").value.trim()
    if (!state.isLive) return say(note, OFFLINE)
    say(note, "")
    remember(NAME_KEY, name)
    field.value = ""
    field.focus()
    const event = byId("broadcast").checked ? broadcastEvent : channelEvent
    // Success has no reply: the message arrives in every window, including this one.
    channel.push(event, { name, message }).receive("error", response => {
      say(note, pushRefusal(response))
      if (field.value === "") field.value = message
    })
  })
}

function say(note, words) {
  note.textContent = words
}

// ---------------------------------------------------------------- the private panel

/** Joins one topic with a pasted token, in addition to the public one and over the same socket. */
class PrivatePanel {
  constructor(socket) {
    this.socket = socket
    this.channel = null
    this.feed = new Feed(byId("private-feed"))
    byId("private-join").addEventListener("submit", submit => {
      submit.preventDefault()
      this.join(byId("private-topic").value.trim())
    })
    byId("private-leave").addEventListener("click", () => this.leave("idle", ""))
    byId("private-say").addEventListener("submit", submit => {
      submit.preventDefault()
      this.send()
    })
  }

  join(wanted) {
    if (wanted === topic) return this.show("idle", "This window already listens to that topic.")
    this.leave("joining", "")
    this.feed.clear()
    const channel = this.socket.channel(wanted, tokenParams())
    this.channel = channel
    const ifCurrent = act => response => this.channel === channel && act(response)
    const heard = isWholeScope(wanted) ? heardOnScope : heardOnChannel
    const recovery = recover(channel)
    channel.onMessage = (event, payload) => {
      if (!isControl(event)) this.feed.add(heard(event), payload, recovery)
      return payload
    }
    channel.onError(ifCurrent(() => this.show("joining", "The connection was lost. Joining again by itself.")))
    channel.onClose(ifCurrent(() => this.leave("idle", "The server closed this channel.")))
    channel.join()
      .receive("ok", ifCurrent(() => this.show("joined", "")))
      // phoenix.js would retry for ever, although a refused token stays refused.
      .receive("error", ifCurrent(response => this.leave("refused", refusal(response))))
  }

  /** Leaves the channel, if there is one, and shows the reason. */
  leave(next, words) {
    const channel = this.channel
    this.channel = null
    channel?.leave()
    this.show(next, words)
  }

  send() {
    const field = byId("private-message")
    const note = byId("private-send-note")
    const message = field.value
    if (!this.channel?.canPush()) return say(note, "Not sent: the topic is not joined right now.")
    say(note, "")
    field.value = ""
    const payload = { name: byId("name").value.trim() || "unnamed", message }
    this.channel.push(eventFor(this.channel.topic), payload).receive("error", response => {
      say(note, pushRefusal(response))
      if (field.value === "") field.value = message
    })
  }

  show(next, words) {
    const word = { idle: "Not joined", joining: "Joining", joined: "Joined", refused: "Refused" }[next]
    byId("private-state").dataset.state = next
    byId("private-word").textContent = word
    say(byId("private-note"), words)
    byId("private-note").dataset.tone = next === "refused" ? "bad" : "calm"
    byId("private-leave").disabled = this.channel === null
    // After a join, the next action is to send.
    byId("private-join-go").classList.toggle("button-quiet", next === "joined")
    byId("private-join-go").textContent = next === "joined" ? "Join again" : "Join"
    byId("private-say").hidden = next !== "joined"
  }
}

function tokenParams() {
  const params = { guardian_token: byId("private-token").value.trim() }
  const csrf = byId("private-csrf").value.trim()
  return csrf ? { ...params, csrf_token: csrf } : params
}

/**
 * Splits a topic: `<scope>:<app>` or `<scope>:<app>:<channel>` of this page's app, or `<scope>:<channel>` as a
 * server with a single app has it. The channel of a whole scope is empty.
 */
function partsOf(topic) {
  const [scope, ...rest] = topic.split(":")
  const namesApp = rest.length === 0 || rest[0] === app
  return { scope, namesApp, channel: (namesApp ? rest.slice(1) : rest).join(":") }
}

/** Whether a topic is `<scope>:<app>`, without a channel. */
function isWholeScope(topic) {
  return partsOf(topic).channel === ""
}

/** The event as it is pushed: on a whole scope its name begins with the channel, on a single channel it does not. */
function eventFor(joined) {
  return isWholeScope(joined) ? channelEvent : broadcastEvent
}

// ---------------------------------------------------------------- small things

function remember(key, value) {
  try {
    localStorage.setItem(key, value)
  } catch {
    // A browser may forbid storage; the page works without.
  }
}

function recall(key) {
  try {
    return localStorage.getItem(key) ?? ""
  } catch {
    return ""
  }
}

function quoted(word) {
  return /^[\w:=.-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}

/** The command that triggers an event on a channel, for a terminal. */
function curlCommand(channel, scope) {
  return [
    `curl -u KEY:SECRET ${location.origin}/api/apps/${encodeURIComponent(app)}/events`,
    `${scope === "public" ? "" : `-d ${quoted(`scope=${scope}`)} `}-d event=msg --data-urlencode ${quoted(`topic=${channel}`)}`,
    `-d 'payload={"name":"curl","message":"Hello"}'`,
  ].join(LINE_BREAK)
}

/**
 * The command that mints a token for a topic: for any channel of its scope, or for the whole scope; for this
 * one channel where the topic does not name the app.
 */
function tokenCommand(topic) {
  const { scope, namesApp, channel } = partsOf(topic)
  const pattern = quoted(namesApp && channel ? `${scope}:${app}:*` : topic)
  const words = [`herald token --app ${quoted(app)}`, `--listen ${pattern}`, `--publish ${pattern}`]
  // The token's `sub` is the presence key, so presence topics need one.
  if (scope === "presence") words.push(`--sub '"ada"'`)
  return words.join(LINE_BREAK)
}

function showPrivateCommands() {
  const wanted = byId("private-topic").value.trim()
  const { scope, channel } = partsOf(wanted)
  byId("private-command").textContent = tokenCommand(wanted)
  byId("private-curl").textContent = curlCommand(channel || channelName, scope)
  byId("pattern-in-use").textContent = `${scope}:${app}:*`
  byId("scope-in-use").textContent = `${scope}:${app}`
}

function fillForms() {
  byId("app-in-use").textContent = app
  byId("channel-in-use").textContent = channelName
  byId("app").value = app
  byId("channel").value = channelName
  byId("name").value = recall(NAME_KEY)
  byId("curl").textContent = curlCommand(channelName, "public")
  byId("private-topic").value = `private:${app}:${PRIVATE_CHANNEL}`
  byId("private-topic").addEventListener("input", showPrivateCommands)
  showPrivateCommands()
}

function start() {
  fillForms()
  wireCopyButtons()
  wireOthers()
  if (!byId("switch").checkValidity()) {
    byId("state").dataset.state = "refused"
    byId("state-word").textContent = "Not connected"
    byId("state-detail").textContent = "The address names an app or channel that cannot exist. Correct it under “App and channel”."
    byId("compose").addEventListener("submit", submit => submit.preventDefault())
    return
  }
  const socket = openSocket()
  wireCompose(joinApp(socket))
  wireCut(socket)
  new PrivatePanel(socket)
  state.show()
  socket.connect()
}

start()
