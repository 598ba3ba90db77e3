// The API, from the two documents that describe it. Text comes in as text: nothing of it is ever markup.

const at = id => document.getElementById(id);

function made(name, inside = [], attributes = {}) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...[].concat(inside).filter(part => part !== null && part !== undefined));
  return element;
}

const code = value => made("pre", JSON.stringify(value, null, 2), { tabindex: "0" });
const list = rows => made("dl", rows.flatMap(([name, text]) => [made("dt", name), made("dd", prose(text))]));

function titled(title, ...parts) {
  return parts.length ? [made("h3", title), ...parts] : [];
}

// `code` in a description is shown as code.
const prose = text => (text ?? "").split("`").map((part, index) => (index % 2 ? made("code", part) : part));

function described(verb, address, summary, parts) {
  const head = made("summary", [made("span", verb, { class: "verb" }), made("code", address), summary ?? ""]);
  return made("details", [head, ...parts]);
}

function resolved(whole, part) {
  if (!part || typeof part.$ref !== "string" || !part.$ref.startsWith("#/")) return part;
  const names = part.$ref.slice(2).split("/").map(name => name.replaceAll("~1", "/").replaceAll("~0", "~"));
  return names.reduce((found, name) => found?.[name], whole);
}

function operation(whole, path, verb, told) {
  const parameters = (told.parameters ?? []).map(p => [`${p.name} (${p.in})`, p.description]);
  const bodies = Object.entries(told.requestBody?.content ?? {}).map(([kind, body]) => [
    kind, body.example === undefined ? "" : typeof body.example === "string" ? body.example : JSON.stringify(body.example),
  ]);
  const answers = Object.entries(told.responses).map(([status, answer]) => [status, resolved(whole, answer)?.description]);
  return described(verb.toUpperCase(), path, told.summary, [
    told.description ? made("p", prose(told.description)) : null,
    ...(parameters.length ? titled("Parameters", list(parameters)) : []),
    ...(bodies.length ? titled("Bodies", list(bodies)) : []),
    ...titled("Answers", list(answers)),
  ]);
}

function payloads(whole, title, channel) {
  const messages = Object.values(channel?.messages ?? {}).map(message => resolved(whole, resolved(whole, message)));
  return messages.flatMap(message => titled(`${title}${message.name}, ${message.contentType}`, code(resolved(whole, message.payload))));
}

// Of a service the address is that of its requests; where its replies go is nobody's to know.
function channel(whole, name, told) {
  const uses = Object.entries(whole.operations ?? {}).filter(([, use]) => resolved(whole, use.channel) === told);
  const asked = told.address.startsWith("_request.");
  const actions = [...new Set(uses.map(([, use]) => (!asked ? use.action : use.action === "send" ? "asks" : "answers")))];
  const reply = uses.map(([, use]) => resolved(whole, use.reply?.channel)).find(Boolean);
  const address = asked ? `/requests/${told.address.slice("_request.".length)}` : told.address;
  return described(actions.join(", ") || "known", address, uses.map(([, use]) => use.summary).filter(Boolean).join(" "), [
    ...(uses.length ? titled("Used by", list(uses.map(([who, use]) => [who, use.title]))) : []),
    ...payloads(whole, "", told),
    ...payloads(whole, "Reply: ", reply),
  ]);
}

async function fetched(path, token) {
  const answer = await fetch(path, token ? { headers: { authorization: `Bearer ${token}` } } : {});
  return [answer.status, await answer.json()];
}

async function showTopics(token) {
  const [status, whole] = await fetched("asyncapi.json", token);
  at("token-form").hidden = status !== 401;
  if (status !== 200) {
    at("topics-state").textContent = token || status !== 401 ? whole.detail : "";
    return;
  }
  const channels = Object.entries(whole.channels ?? {}).filter(([, told]) => told.address);
  at("app").textContent = `${whole.info.title} ${whole.info.version}`;
  at("topics-state").textContent = channels.length ? "" : "This server has no app: only its bus knows what is published.";
  at("channels").replaceChildren(...channels.map(([name, told]) => channel(whole, name, told)));
}

async function show() {
  const [, whole] = await fetched("openapi.json");
  at("about").replaceChildren(...prose(whole.info.description));
  at("operations").replaceChildren(
    ...Object.entries(whole.paths).flatMap(([path, verbs]) =>
      Object.entries(verbs).map(([verb, told]) => operation(whole, path, verb, told))),
  );
}

at("token-form").addEventListener("submit", event => {
  event.preventDefault();
  showTopics(at("token").value.trim()).catch(failed);
});
const failed = error => { at("topics-state").textContent = `The server cannot be asked: ${error.message}`; };
show().catch(failed);
showTopics("").catch(failed);
