// What a page does with its phoenix.js, on behalf of the test that steers it and is told what happens.
//
// A plain script, for a window of node's and for Chromium's alike. `module.exports` is what the published file
// exports; `tell` takes text to the test. Clients, channels and pushes go by the numbers that the test gave them.

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

  function push(client, number, request, event, message) {
    const payload = message.bytes ? Uint8Array.from(message.bytes).buffer : message.payload
    listen(client, request, channels[number].push(event, payload))
  }

  function leave(client, number) {
    channels[number].leave()
  }

  /** Sends a message of which the client's own channels know nothing, in the client's own encoding. */
  function slip(client, message) {
    const socket = sockets[client]
    const ref = socket.makeRef()
    socket.push({ payload: {}, ...message, ref })
    return ref
  }

  /** Sends what is no message at all. */
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

  /** The picture of who is there, as each generation keeps it, whenever it may have changed. */
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

  return { connect, join, push, leave, slip, babble, disconnect }
})()
