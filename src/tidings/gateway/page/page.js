// The built-in page. What it knows it asks the server for, as anybody could: GET topics, POST topics/{topic}, /ws.

const LOOK = 2000; // milliseconds between two looks at the topics
const TREND = 30; // looks that a line shows: a minute
const KEPT = 200; // messages on the page
const find = (id) => document.getElementById(id);
const url = (path) => new URL(path, document.baseURI);

// -- the token: in this tab only

let token = sessionStorage.getItem("tidings-token") ?? "";
const authorized = (headers = {}) => (token ? { ...headers, Authorization: `Bearer ${token}` } : headers);

function askForToken(why) {
  if (why) find("token-why").textContent = why;
  find("token").value = "";
  if (!find("token-dialog").open) find("token-dialog").showModal();
}

function useToken(given) {
  token = given.trim();
  if (token) sessionStorage.setItem("tidings-token", token);
  else sessionStorage.removeItem("tidings-token");
  socket.restart();
  look();
}

find("token-open").addEventListener("click", () => askForToken());
find("token-form").addEventListener("submit", () => useToken(find("token").value));
find("token-forget").addEventListener("click", () => {
  find("token-dialog").close();
  useToken("");
});

function show(state, text) {
  find("state").dataset.state = state;
  if (find("state-text").textContent !== text) find("state-text").textContent = text;
}

// -- topics and their rates

const trends = new Map(); // topic -> its last rates
let topics = [];
let looking = 0;
let looks = 0;

async function look() {
  clearTimeout(looking);
  looking = setTimeout(look, LOOK);
  if (document.hidden) return;
  const mine = (looks += 1); // what a later look was asked after, perhaps with another token, says no more
  try {
    const answer = await fetch(url("topics"), { headers: authorized(), cache: "no-store" });
    const said = answer.ok ? await answer.json() : null;
    if (mine !== looks) return;
    if (answer.status === 401) {
      show("away", "a token is needed");
      if (!find("token-dialog").open) askForToken(token ? "This token is not known here. Another one?" : "This server wants to know who you are. The token stays in this tab.");
      clearTimeout(looking);
      return;
    }
    if (!answer.ok) throw new Error(await told(answer));
    topics = said.topics;
    show("here", "connected");
  } catch (error) {
    if (mine === looks) show("away", "not connected");
    return;
  }
  for (const name of trends.keys()) if (!topics.some((topic) => topic.name === name)) trends.delete(name);
  for (const { name, rate } of topics) trends.set(name, [...(trends.get(name) ?? []), rate].slice(-TREND));
  drawTopics();
}

function drawTopics() {
  const wanted = find("filter").value.trim().toLowerCase();
  const shown = topics.filter((topic) => topic.name.toLowerCase().includes(wanted)).slice(0, 300);
  const rows = find("topic-rows");
  const old = new Map([...rows.children].map((row) => [row.dataset.name, row]));
  for (const [name, row] of old) if (!shown.some((topic) => topic.name === name)) row.remove();
  shown.forEach((topic, index) => {
    const row = old.get(topic.name) ?? newRow(topic.name);
    fill(row, topic);
    if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null);
  });
  find("topics-none").hidden = shown.length > 0;
  find("topics-none").textContent = topics.length ? "No topic has this in its name." : "No topics yet. Publish a message and its topic is here.";
}

function newRow(name) {
  const row = document.createElement("tr");
  row.dataset.name = name;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = button.title = name;
  button.setAttribute("aria-label", `Follow ${name}`);
  button.addEventListener("click", () => {
    find("topic").value = name;
    find("pattern").value = name;
    follow(name);
  });
  row.insertCell().append(button);
  row.insertCell().className = "number";
  row.insertCell().className = "number";
  const trend = row.insertCell();
  trend.className = "trend";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 64 20");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
  trend.append(svg);
  return row;
}

function fill(row, { name, retained, rate }) {
  const [, held, speed, trend] = row.cells;
  put(held, retained === null ? "–" : retained.toLocaleString("en"));
  put(speed, rate < 0.05 ? "0" : rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en"));
  row.classList.toggle("quiet-row", rate < 0.05);
  const rates = trends.get(name) ?? [];
  const most = Math.max(1, ...rates);
  const points = rates.map((each, at) => `${(64 - ((rates.length - 1 - at) * 64) / (TREND - 1)).toFixed(1)},${(18 - (each / most) * 16).toFixed(1)}`);
  trend.querySelector("polyline").setAttribute("points", points.length > 1 ? points.join(" ") : "");
}

function put(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

find("filter").addEventListener("input", drawTopics);
document.addEventListener("visibilitychange", () => document.hidden || look());

// -- publishing

find("publish-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = find("body").value;
  const target = url(`topics/${encodeURIComponent(find("topic").value.trim())}`);
  if (find("key").value) target.searchParams.set("key", find("key").value);
  const said = find("published");
  said.className = "";
  said.textContent = "…";
  try {
    const headers = authorized({ "Content-Type": isJSON(body) ? "application/json" : "text/plain; charset=utf-8" });
    const answer = await fetch(target, { method: "POST", headers, body });
    if (!answer.ok) throw new Error(await told(answer));
    said.textContent = `Accepted: ${(await answer.json()).ids[0]}`;
    look();
  } catch (error) {
    said.className = "error";
    said.textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
  }
});

function isJSON(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

async function told(answer) {
  const said = await answer.json().catch(() => ({}));
  return said.detail ? [said.detail, said.why, said.mend].filter(Boolean).join("; ") : `${answer.status} ${answer.statusText}`;
}

// -- messages: one subscription at a time, taken up again where it was

const socket = {
  at: null,
  following: null, // {pattern, after}
  attempts: 0,
  timer: 0,
  names: 0,

  open() {
    if (this.at) return;
    const place = url("ws");
    place.protocol = place.protocol.replace("http", "ws");
    const at = (this.at = new WebSocket(place, token ? ["tidings.v1", `bearer.${token}`] : ["tidings.v1"]));
    at.addEventListener("open", () => {
      this.attempts = 0;
      this.subscribe();
    });
    at.addEventListener("message", (event) => at === this.at && hear(JSON.parse(event.data)));
    at.addEventListener("close", () => {
      if (at !== this.at) return;
      this.at = null;
      if (!this.following) return;
      this.attempts += 1;
      count("not connected: trying again");
      this.timer = setTimeout(() => this.open(), Math.min(10_000, 500 * 2 ** this.attempts) * (0.5 + Math.random() / 2));
    });
  },

  say(frame) {
    if (this.at?.readyState === WebSocket.OPEN) this.at.send(JSON.stringify(frame));
  },

  subscribe() {
    if (!this.following) return;
    this.names += 1;
    this.id = `tail-${this.names}`;
    const { pattern, after } = this.following;
    this.say({ subscribe: after ? { id: this.id, pattern, after } : { id: this.id, pattern } });
  },

  follow(pattern) {
    if (this.following) this.say({ unsubscribe: { id: this.id } });
    this.following = pattern ? { pattern, after: "" } : null;
    if (!this.at) this.open();
    else if (this.at.readyState === WebSocket.OPEN) this.subscribe();
  },

  restart() {
    clearTimeout(this.timer);
    const old = this.at;
    this.at = null;
    old?.close();
    if (this.following) this.open();
  },
};

function hear(frame) {
  const [[kind, said]] = Object.entries(frame);
  if (said.id && said.id !== socket.id) return; // of a subscription that was given up
  if (kind === "message") {
    socket.following.after = said.cursor || socket.following.after;
    seen += 1;
    arrived.push(said.event);
  } else if (kind === "subscribed") {
    socket.following.after = said.cursor || socket.following.after;
    count();
  } else if (kind === "gap") {
    arrived.push(null);
  } else if (kind === "error") {
    complain([said.what, said.why, said.mend].filter(Boolean).join("; "));
    socket.following = null;
    following(false);
  }
  if (arrived.length && !drawing) drawing = requestAnimationFrame(draw);
}

let arrived = []; // not yet drawn; null is a gap
let drawing = 0;
let seen = 0;

function draw() {
  drawing = 0;
  const list = find("messages");
  if (list.querySelector("details[open]")) { // somebody reads: nothing moves
    arrived = arrived.slice(-KEPT);
    count(`${seen.toLocaleString("en")} so far; new ones come when you close this one`);
    return;
  }
  const fresh = arrived.slice(-KEPT).reverse().map(item);
  arrived = [];
  list.prepend(...fresh);
  while (list.children.length > KEPT) list.lastElementChild.remove();
  find("messages-none").hidden = true;
  count();
}

function item(event) {
  const line = document.createElement("li");
  if (event === null) {
    line.className = "gap";
    line.textContent = "Something is missing here: it came faster than it was read, and is no longer to be had.";
    return line;
  }
  line.className = "new";
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const when = document.createElement("time");
  when.dateTime = event.time;
  when.textContent = new Date(event.time).toLocaleTimeString("en-GB") + new Date(event.time).toISOString().slice(19, 23);
  const topic = document.createElement("b");
  topic.textContent = event.tdgtopic ?? event.type;
  const preview = document.createElement("span");
  preview.textContent = (event.partitionkey ? `[${event.partitionkey}] ` : "") + brief(event);
  summary.append(when, topic, preview);
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (!details.open) draw();
    if (details.childElementCount > 1) return;
    const all = document.createElement("pre");
    all.tabIndex = 0;
    all.textContent = JSON.stringify(event, null, 2);
    details.append(all);
  });
  line.append(details);
  return line;
}

function brief(event) {
  if ("data_base64" in event) return `${Math.floor((event.data_base64.length * 3) / 4)} bytes`;
  const text = typeof event.data === "string" ? event.data : JSON.stringify(event.data ?? "");
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

function count(problem) {
  find("count").textContent = problem ?? (socket.following ? `${seen.toLocaleString("en")} so far` : "");
}

function complain(text) {
  find("follow-error").textContent = text;
  find("follow-error").hidden = !text;
}

function following(now) {
  find("follow-button").textContent = now ? "Stop" : "Follow";
  find("messages-none").hidden = now || find("messages").childElementCount > 0;
  count();
}

function follow(pattern) {
  complain("");
  seen = 0;
  find("messages").replaceChildren();
  socket.follow(pattern);
  following(true);
  count("waiting for messages");
}

find("follow-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const pattern = find("pattern").value.trim();
  if (socket.following && socket.following.pattern === pattern) {
    socket.follow(null);
    following(false);
  } else follow(pattern);
});
find("pattern").addEventListener("input", () => {
  const same = socket.following?.pattern === find("pattern").value.trim();
  find("follow-button").textContent = same ? "Stop" : "Follow";
});
find("clear").addEventListener("click", () => {
  find("messages").replaceChildren();
  seen = 0;
  following(Boolean(socket.following));
});

look();
