// Controls the phoenix.js of a page on behalf of a test, and reports to the test what happens.
//
// This is a plain script for windows in node and in Chromium. `module.exports` holds the exports of the published file;
// `tell` sends text to the test. The test gives numbers to clients, channels and pushes.

window.driver = (() => {
  const { Socket, LongPoll, Presence } = module.exports
  const sockets = {}
  const channels = {}

  function connect(client, url, { polls, params, retriesMs, heartbeatMs, timeoutMs, fallbackMs }) {
    const after = tries => retriesMs[Math.min(tries, retriesMs.length) - 1]
    const socket = new Socket(url, {
      params,
      ...(retriesMs && { reconnectAfterMs: after, rejoinAfterMs: after }),
      ...(polls && { transport: LongPoll }),
      ...(heartbeatMs && { heartbeatIntervalMs: heartbeatMs }),
      ...(timeoutMs && { timeout: timeoutMs }),
      ...(fallbackMs && { longPollFallbackMs: fallbackMs }),
    })
    sockets[client] = socket
    socket.onOpen(() => say(client, "opened", socket.conn instanceof LongPoll ? "long-poll" : "WebSocket"))
    socket.onClose(event => say(client, "lost", event && event.code))
    socket.onMessage(({ topic, event, ref, join_ref }) => say(client, "wire", { topic, event, ref, join_ref }))
    socket.connect()
  }

  function join(client, number, topic, { payload, events, withPresence, pushes }) {
    const channel = sockets[client].channel(topic, payload)
    channels[number] = channel
    for (const event of events) channel.on(event, message => say(client, "event", number, { event, ...packed(message) }))
    channel.onClose(() => say(client, "closed", number))
    channel.onError(() => say(client, "errored", number))
    if (withPresence) follow(channel, picture => say(client, "picture", number, picture))
    listen(client, number, channel.join())
    for (const [event, message] of pushes) channel.push(event, message)
  }

  /** Runs lines of a page that join a channel, with the variables that they use, and listens to the channel. */
  function paste(client, number, lines, { event, token, position }) {
    const page = { querySelector: () => (position ? { content: position } : null) }
    const reload = () => say(client, "reloads", number)
    const pasted = new Function("socket", "token", "document", "reload", `${lines}\nreturn channel`)
    const channel = pasted(sockets[client], token, page, reload)
    channels[number] = channel
    channel.on(event, (payload, ref) => say(client, "event", number, { payload, position: ref }))
  }

  function push(client, number, request, event, message) {
    const payload = message.bytes ? Uint8Array.from(message.bytes).buffer : message.payload
    listen(client, request, channels[number].push(event, payload))
  }

  function leave(client, number) {
    channels[number].leave()
  }

  /** Sends a message that no channel object of the client knows of, in the client's own encoding. */
  function slip(client, message) {
    const socket = sockets[client]
    const ref = socket.makeRef()
    socket.push({ payload: {}, ...message, ref })
    return ref
  }

  /** Sends a text that is not a message. */
  function babble(client) {
    sockets[client].conn.send("{")
  }

  function disconnect(client) {
    return new Promise(resolve => sockets[client].disconnect(resolve))
  }

  function listen(client, request, sent) {
    for (const status of ["ok", "error", "timeout"]) {
      sent.receive(status, response => say(client, "reply", request, { status, response }))
    }
  }

  /** Reports who is present, in the form that each generation keeps, after each possible change. */
  function follow(channel, see) {
    if (typeof Presence === "function") {
      const presence = new Presence(channel)
      presence.onSync(() => see(presence.state))
      return
    }
    let picture = {}
    channel.on("presence_state", state => see(picture = Presence.syncState(picture, state)))
    channel.on("presence_diff", diff => see(picture = Presence.syncDiff(picture, diff)))
  }

  function packed(message) {
    return message instanceof ArrayBuffer ? { bytes: Array.from(new Uint8Array(message)) } : { payload: message }
  }

  function say(...words) {
    tell(JSON.stringify(words))
  }

  return { connect, join, paste, push, leave, slip, babble, disconnect }
})()
