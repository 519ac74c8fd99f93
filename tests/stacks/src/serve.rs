//! Drive one member by JSON lines: a request on standard input, its answer on standard output. See README.md.

use std::io::{stdin, stdout, BufRead, Write};

use serde_json::{json, Value};

use crate::member::{self, Change, Commit, Member, Processed, Result, Settings};

pub fn run() -> Result<()> {
    let mut member: Option<Box<dyn Member>> = None;
    for line in stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let mut answer = match answer(&mut member, &request) {
            Ok(answer) => answer,
            Err(error) => json!({ "error": describe(error.as_ref()) }),
        };
        if let Some(id) = request.get("id") {
            answer["id"] = id.clone();
        }
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn describe(error: &dyn std::error::Error) -> String {
    let text = format!("{error}");
    let details = format!("{error:?}");
    if details.contains(&text) {
        details
    } else {
        format!("{text} ({details})")
    }
}

fn answer(member: &mut Option<Box<dyn Member>>, request: &Value) -> Result<Value> {
    let op = text(request, "op")?;
    if op == "client" {
        *member = Some(member::new(text(request, "stack")?, settings(request)?)?);
        return Ok(json!({}));
    }
    let member = member.as_mut().ok_or("the first request must be `client`")?;
    Ok(match op {
        "key_package" => {
            let made = member.key_package(flag(request, "last_resort", false))?;
            json!({ "key_package": hex::encode(made.message), "reference": hex::encode(made.reference) })
        }
        "psk" => {
            member.store_psk(&octets(request, "psk_id")?, &octets(request, "value")?)?;
            json!({})
        }
        "join" => {
            let group_id = member.join(&octets(request, "welcome")?, maybe(request, "ratchet_tree")?.as_deref())?;
            state(member.as_ref(), &group_id)?
        }
        "join_external" => {
            let tree = maybe(request, "ratchet_tree")?;
            commit(member.join_external(
                &octets(request, "group_info")?,
                tree.as_deref(),
                &list(request, "psk_ids")?,
            )?)
        }
        "propose_join" => {
            let tree = maybe(request, "ratchet_tree")?;
            message(member.propose_join(&octets(request, "group_info")?, tree.as_deref())?)
        }
        _ => in_group(member.as_mut(), op, &octets(request, "group_id")?, request)?,
    })
}

fn in_group(member: &mut dyn Member, op: &str, group_id: &[u8], request: &Value) -> Result<Value> {
    Ok(match op {
        "create" => {
            member.create(group_id, &senders(request)?)?;
            state(member, group_id)?
        }
        "propose" => message(member.propose(group_id, change(&request["change"])?)?),
        "commit" => {
            let changes = request["changes"].as_array().into_iter().flatten().map(change);
            commit(member.commit(group_id, changes.collect::<Result<_>>()?)?)
        }
        "merge" => {
            member.merge(group_id)?;
            state(member, group_id)?
        }
        "discard" => {
            member.discard(group_id)?;
            json!({})
        }
        "forget" => {
            member.forget(group_id)?;
            json!({})
        }
        "process" => processed(member, group_id, &octets(request, "message")?)?,
        "encrypt" => message(member.encrypt(group_id, &octets(request, "data")?)?),
        "export" => {
            let length = request["length"].as_u64().ok_or("length must be a number")? as usize;
            let context = maybe(request, "context")?.unwrap_or_default();
            json!({ "secret": hex::encode(member.export(group_id, text(request, "label")?, &context, length)?) })
        }
        "state" => state(member, group_id)?,
        "group_info" => {
            let info = member.group_info(group_id, flag(request, "tree", true))?;
            json!({ "group_info": hex::encode(info), "ratchet_tree": hex::encode(member.ratchet_tree(group_id)?) })
        }
        _ => return Err(format!("no such op: {op}").into()),
    })
}

fn processed(member: &mut dyn Member, group_id: &[u8], octets: &[u8]) -> Result<Value> {
    Ok(match member.process(group_id, octets)? {
        Processed::Application { sender, data } => {
            json!({ "kind": "application", "sender": sender, "data": hex::encode(data) })
        }
        Processed::Proposal => json!({ "kind": "proposal" }),
        Processed::Own => json!({ "kind": "own" }),
        Processed::Commit { active: false } => json!({ "kind": "commit", "active": false }),
        Processed::Commit { active: true } => {
            let mut answer = state(member, group_id)?;
            answer["kind"] = json!("commit");
            answer["active"] = json!(true);
            answer
        }
    })
}

fn state(member: &dyn Member, group_id: &[u8]) -> Result<Value> {
    let state = member.state(group_id)?;
    let mut found = state.json();
    found["group_id"] = json!(hex::encode(state.group_id));
    Ok(found)
}

fn commit(made: Commit) -> Value {
    json!({
        "message": hex::encode(made.message),
        "welcome": made.welcome.map(hex::encode),
        "group_info": made.group_info.map(hex::encode),
        "ratchet_tree": made.ratchet_tree.map(hex::encode),
        "group_id": hex::encode(&made.next.group_id),
        "next": made.next.json(),
    })
}

fn message(octets: Vec<u8>) -> Value {
    json!({ "message": hex::encode(octets) })
}

fn settings(request: &Value) -> Result<Settings> {
    Ok(Settings {
        identity: text(request, "identity")?.to_string(),
        suite: u16::try_from(request["suite"].as_u64().ok_or("suite must be a number")?)?,
        encrypted: flag(request, "encrypted", false),
        tree: flag(request, "tree", true),
        grease: flag(request, "grease", true),
        lists_suites: flag(request, "lists_suites", true),
        lists_last_resort: flag(request, "lists_last_resort", true),
    })
}

fn change(request: &Value) -> Result<Change> {
    Ok(match text(request, "type")? {
        "add" => Change::Add(octets(request, "key_package")?),
        "update" => Change::Update,
        "remove" => Change::Remove(u32::try_from(request["leaf"].as_u64().ok_or("leaf must be a number")?)?),
        "psk" => Change::Psk(octets(request, "psk_id")?),
        "self_remove" => Change::SelfRemove,
        "app_data" => {
            let component = u16::try_from(request["component"].as_u64().ok_or("component must be a number")?)?;
            Change::AppData(component, maybe(request, "data")?)
        }
        other => return Err(format!("no such change: {other}").into()),
    })
}

fn senders(request: &Value) -> Result<Vec<(Vec<u8>, String)>> {
    let given = request["external_senders"].as_array().into_iter().flatten();
    given.map(|each| Ok((octets(each, "signature_key")?, text(each, "identity")?.to_string()))).collect()
}

fn text<'a>(request: &'a Value, field: &str) -> Result<&'a str> {
    Ok(request[field].as_str().ok_or_else(|| format!("{field} must be a string"))?)
}

fn octets(request: &Value, field: &str) -> Result<Vec<u8>> {
    Ok(hex::decode(text(request, field)?)?)
}

fn maybe(request: &Value, field: &str) -> Result<Option<Vec<u8>>> {
    Ok(request[field].as_str().map(hex::decode).transpose()?)
}

fn list(request: &Value, field: &str) -> Result<Vec<Vec<u8>>> {
    let given = request[field].as_array().into_iter().flatten();
    given.map(|each| Ok(hex::decode(each.as_str().ok_or("a list must have strings")?)?)).collect()
}

fn flag(request: &Value, field: &str, default: bool) -> bool {
    request[field].as_bool().unwrap_or(default)
}
