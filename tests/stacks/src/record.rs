//! Record conversations as JSON lines, in the form that `mimids mls replay` reads (tests/vectors/README.md).
//!
//! Every member follows what is recorded, and must reach the state of the sender. So a recording is also a proof that
//! the libraries understand each other.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{json, Value};

use crate::member::{self, Change, Commit, Member, Processed, Result, Settings};

const PEOPLE: [(&str, &str); 8] = [
    ("alice", "a.example"),
    ("bob", "b.example"),
    ("carol", "c.example"),
    ("dave", "b.example"),
    ("erin", "c.example"),
    ("frank", "a.example"),
    ("grace", "b.example"),
    ("heidi", "c.example"),
];
const PSK_ID: &[u8] = b"a shared secret";
const COMPONENT: u16 = 0x8001; // for private use: the server does not interpret its data

/// What differs between recordings.
pub struct Scene {
    pub name: String,
    /// The library of each person, in turn.
    pub stacks: Vec<&'static str>,
    pub suite: u16,
    pub encrypted: bool,
    pub tree: bool,
    pub lists_suites: bool,
}

/// Write all recordings into a directory.
pub fn run(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    for scene in scenes() {
        let path = directory.join(format!("{}.jsonl", scene.name));
        let lines = Recorder::new(&scene)?.play().map_err(|error| format!("{}: {error}", scene.name))?;
        let mut file = BufWriter::new(File::create(path)?);
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.flush()?;
    }
    Ok(())
}

fn scenes() -> Vec<Scene> {
    let mut found = Vec::new();
    for (stacks, who) in [
        (vec!["mls-rs"], "mls-rs"),
        (vec!["openmls"], "openmls"),
        (vec!["mls-rs", "openmls"], "mls-rs-first"),
        (vec!["openmls", "mls-rs"], "openmls-first"),
    ] {
        for suite in [1, 2, 3, 7] {
            if suite == 7 && stacks.contains(&"openmls") {
                continue; // OpenMLS supports no suite 7
            }
            for encrypted in [false, true] {
                for tree in [false, true] {
                    if stacks.len() > 1 && tree != encrypted {
                        continue; // half of them suffice
                    }
                    let handshakes = if encrypted { "private" } else { "public" };
                    let with = if tree { "" } else { "-no-tree" };
                    found.push(Scene {
                        name: format!("{who}-{suite}-{handshakes}{with}"),
                        stacks: stacks.clone(),
                        suite,
                        encrypted,
                        tree,
                        lists_suites: tree,
                    });
                }
            }
        }
    }
    found
}

struct Seat {
    name: &'static str,
    member: Box<dyn Member>,
    stack: &'static str,
    joined: bool,
}

struct Recorder<'a> {
    scene: &'a Scene,
    seats: Vec<Seat>,
    group_id: Vec<u8>,
    lines: Vec<Value>,
    forked: bool,
}

impl<'a> Recorder<'a> {
    fn new(scene: &'a Scene) -> Result<Self> {
        let mut seats = Vec::new();
        for (number, (name, provider)) in PEOPLE.into_iter().enumerate() {
            let stack = scene.stacks[number % scene.stacks.len()];
            let member = member::new(
                stack,
                Settings {
                    identity: format!("mimi://{provider}/u/{name}/d/1"),
                    suite: scene.suite,
                    encrypted: scene.encrypted,
                    tree: scene.tree,
                    grease: stack == "openmls" || scene.stacks.len() == 1, // see Settings
                    lists_suites: scene.lists_suites,
                    lists_last_resort: scene.stacks[0] == "openmls",
                },
            )?;
            seats.push(Seat { name, member, stack, joined: false });
        }
        let group_id = format!("recorded {}", scene.name).into_bytes();
        Ok(Recorder { scene, seats, group_id, lines: Vec::new(), forked: false })
    }

    fn play(mut self) -> Result<Vec<Value>> {
        let mut packages = Vec::new();
        for index in 0..self.seats.len() {
            packages.push(self.key_package(index, index == 1 || index == 2)?);
        }
        let [alice, bob, carol, dave, erin, frank, grace, heidi] = [0, 1, 2, 3, 4, 5, 6, 7];
        let add = |index: usize| Change::Add(packages[index].clone());
        self.create(alice)?;
        self.commit(alice, vec![add(bob), add(carol)], &[bob, carol])?;
        self.talk()?;
        self.propose(bob, Change::Update)?;
        self.propose(carol, add(erin))?;
        self.commit(alice, vec![], &[erin])?;
        self.commit(erin, vec![Change::Update, add(frank), add(grace)], &[frank, grace])?;
        self.talk()?;
        self.commit(carol, vec![Change::Psk(PSK_ID.to_vec())], &[])?;
        self.propose(frank, Change::Psk(PSK_ID.to_vec()))?;
        self.commit(grace, vec![], &[])?;
        if self.uses_only("openmls") {
            self.commit(alice, vec![Change::AppData(COMPONENT, Some(b"first".to_vec()))], &[])?;
            self.propose(bob, Change::AppData(COMPONENT, Some(b"second".to_vec())))?;
            self.commit(carol, vec![Change::AppData(COMPONENT + 1, Some(b"other".to_vec()))], &[])?;
            self.commit(erin, vec![Change::AppData(COMPONENT, None)], &[])?;
        }
        self.join_external(dave)?;
        self.talk()?;
        self.propose_join(heidi)?;
        self.commit(dave, vec![], &[heidi])?;
        self.join_external(bob)?; // a member replaces its own leaf
        self.talk()?;
        if self.scene.stacks.len() == 1 {
            self.propose(grace, Change::SelfRemove)?; // the libraries have different code points for it
            self.commit(heidi, vec![Change::Update], &[])?;
        }
        let leaf = self.leaf(erin)?;
        self.propose(alice, Change::Remove(leaf))?;
        self.commit(bob, vec![], &[])?;
        let leaf = self.leaf(dave)?;
        self.commit(frank, vec![Change::Remove(leaf)], &[])?;
        self.talk()?;
        self.fork(alice, bob)?;
        Ok(self.lines)
    }

    fn uses_only(&self, stack: &str) -> bool {
        self.seats.iter().all(|seat| seat.stack == stack)
    }

    fn leaf(&self, index: usize) -> Result<u32> {
        let members = self.seats[0].member.state(&self.group_id)?.members;
        let name = format!("/u/{}/", self.seats[index].name);
        Ok(members.into_iter().find(|(_, identity)| identity.contains(&name)).ok_or("no such member")?.0)
    }

    fn key_package(&mut self, index: usize, last_resort: bool) -> Result<Vec<u8>> {
        let seat = &mut self.seats[index];
        seat.member.store_psk(PSK_ID, b"0123456789abcdef0123456789abcdef")?;
        let made = seat.member.key_package(last_resort)?;
        self.lines.push(json!({
            "kind": "key_package", "name": seat.name, "ciphersuite": self.scene.suite, "last_resort": last_resort,
            "key_package_ref": hex::encode(made.reference), "bytes": hex::encode(&made.message),
        }));
        Ok(made.message)
    }

    fn create(&mut self, index: usize) -> Result<()> {
        let seat = &mut self.seats[index];
        seat.member.create(&self.group_id, &[])?;
        seat.joined = true;
        let state = seat.member.state(&self.group_id)?;
        let info = seat.member.group_info(&self.group_id, self.scene.tree)?;
        let tree = seat.member.ratchet_tree(&self.group_id)?;
        self.lines.push(json!({
            "kind": "group_created", "name": "created", "by": seat.name, "group_id": hex::encode(&self.group_id),
            "ciphersuite": self.scene.suite, "epoch": 0, "state": state.json(),
        }));
        let key = hex::encode(state.partition_key);
        self.group_info(info, if self.scene.tree { None } else { Some(tree) }, 0, &key);
        Ok(())
    }

    fn group_info(&mut self, info: Vec<u8>, tree: Option<Vec<u8>>, epoch: u64, key: &str) {
        let mut line = json!({
            "kind": "group_info", "name": "group_info", "group_id": hex::encode(&self.group_id), "epoch": epoch,
            "partition_key": key, "bytes": hex::encode(info),
        });
        if let Some(tree) = tree {
            line["ratchet_tree"] = json!(hex::encode(tree));
        }
        self.lines.push(line);
    }

    /// Record a message of a member in its present epoch; return the line, which may be completed.
    fn message(&mut self, index: usize, kind: &str, octets: &[u8]) -> Result<&mut Value> {
        let seat = &self.seats[index];
        let state = seat.member.state(&self.group_id)?;
        self.lines.push(json!({
            "kind": kind, "name": format!("{}-{kind}-{}", seat.name, self.lines.len()), "by": seat.name,
            "group_id": hex::encode(&self.group_id), "epoch": state.epoch, "expect": "accept",
            "partition_key": hex::encode(state.partition_key), "bytes": hex::encode(octets),
        }));
        Ok(self.lines.last_mut().expect("a line was added"))
    }

    /// Let the other members whose epoch has this key process a message.
    fn deliver(&mut self, from: usize, octets: &[u8], key: &[u8]) -> Result<()> {
        for index in 0..self.seats.len() {
            let seat = &mut self.seats[index];
            if index == from || !seat.joined || seat.member.state(&self.group_id)?.partition_key != key {
                continue;
            }
            let processed = seat.member.process(&self.group_id, octets);
            match processed.map_err(|error| format!("{} at line {}: {error:?}", seat.name, self.lines.len()))? {
                Processed::Commit { active } => seat.joined = active,
                Processed::Own => return Err("a message came back to another member than its sender".into()),
                Processed::Application { .. } | Processed::Proposal => {}
            }
        }
        Ok(())
    }

    fn key(&self, index: usize) -> Result<Vec<u8>> {
        Ok(self.seats[index].member.state(&self.group_id)?.partition_key)
    }

    fn talk(&mut self) -> Result<()> {
        for index in 0..self.seats.len() {
            if self.seats[index].joined {
                let text = format!("{} says {}", self.seats[index].name, self.lines.len());
                self.say(index, text.as_bytes())?;
            }
        }
        Ok(())
    }

    fn say(&mut self, index: usize, text: &[u8]) -> Result<()> {
        let octets = self.seats[index].member.encrypt(&self.group_id, text)?;
        self.message(index, "application", &octets)?;
        let key = self.key(index)?;
        self.deliver(index, &octets, &key)
    }

    fn propose(&mut self, index: usize, change: Change) -> Result<()> {
        let octets = self.seats[index].member.propose(&self.group_id, change)?;
        self.message(index, "proposal", &octets)?;
        let key = self.key(index)?;
        self.deliver(index, &octets, &key)
    }

    fn propose_join(&mut self, index: usize) -> Result<()> {
        let (info, tree) = self.found_info()?;
        let octets = self.seats[index].member.propose_join(&info, Some(&tree))?;
        let name = self.seats[index].name;
        self.message(0, "external_proposal", &octets)?["by"] = json!(name);
        let key = self.key(0)?;
        self.deliver(index, &octets, &key)
    }

    fn found_info(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        let (scene, seat) = (self.scene, &mut self.seats[0]);
        Ok((seat.member.group_info(&self.group_id, scene.tree)?, seat.member.ratchet_tree(&self.group_id)?))
    }

    fn commit(&mut self, index: usize, changes: Vec<Change>, joiners: &[usize]) -> Result<()> {
        let made = self.seats[index].member.commit(&self.group_id, changes);
        let made =
            made.map_err(|error| format!("{} at line {}: {error:?}", self.seats[index].name, self.lines.len()))?;
        let next = made.next.json();
        self.message(index, "commit", &made.message)?["next"] = next;
        self.record_rest(&made);
        let key = self.key(index)?;
        self.deliver(index, &made.message, &key)?;
        self.seats[index].member.merge(&self.group_id)?;
        for &joiner in joiners {
            let seat = &mut self.seats[joiner];
            let welcome = made.welcome.as_deref().ok_or("no Welcome")?;
            seat.member
                .join(welcome, made.ratchet_tree.as_deref())
                .map_err(|error| format!("{}: {error:?}", seat.name))?;
            seat.joined = true;
        }
        self.check(&made)
    }

    fn record_rest(&mut self, made: &Commit) {
        let key = hex::encode(&made.next.partition_key);
        if let Some(welcome) = &made.welcome {
            self.lines.push(json!({
                "kind": "welcome", "name": "welcome", "partition_key": key, "group_id": hex::encode(&self.group_id),
                "bytes": hex::encode(welcome),
            }));
        }
        if let Some(info) = &made.group_info {
            self.group_info(info.clone(), made.ratchet_tree.clone(), made.next.epoch, &key);
        }
    }

    fn join_external(&mut self, index: usize) -> Result<()> {
        let before = self.key(0)?;
        let (info, tree) = self.found_info()?;
        let tree = if self.scene.tree { None } else { Some(tree.as_slice()) };
        let made = self.seats[index].member.join_external(&info, tree, &[PSK_ID.to_vec()]);
        let made = made.map_err(|error| format!("{}: {error:?}", self.seats[index].name))?;
        let (name, next) = (self.seats[index].name, made.next.json());
        let line = self.message(0, "external_commit", &made.message)?;
        line["by"] = json!(name);
        line["next"] = next;
        self.record_rest(&made);
        self.seats[index].joined = true;
        self.deliver(index, &made.message, &before)?;
        self.check(&made)
    }

    /// Check that everyone has the state that the commit leads to, except those in another branch of a fork.
    fn check(&self, made: &Commit) -> Result<()> {
        for seat in self.seats.iter().filter(|seat| seat.joined) {
            let state = seat.member.state(&self.group_id)?;
            let elsewhere = self.forked && state.partition_key != made.next.partition_key;
            if !elsewhere && state.json() != made.next.json() {
                return Err(format!("{} has another state: {} {}", seat.name, state.json(), made.next.json()).into());
            }
        }
        Ok(())
    }

    /// Let two members commit in the same epoch. The others follow one or the other, and both branches go on.
    fn fork(&mut self, one: usize, other: usize) -> Result<()> {
        self.forked = true;
        let first = self.seats[one].member.commit(&self.group_id, vec![Change::Update])?;
        let second = self.seats[other].member.commit(&self.group_id, vec![Change::Update])?;
        for (index, made) in [(one, &first), (other, &second)] {
            self.message(index, "commit", &made.message)?["next"] = made.next.json();
            self.record_rest(made);
        }
        for index in 0..self.seats.len() {
            let seat = &mut self.seats[index];
            if index == one || index == other {
                seat.member.merge(&self.group_id)?;
            } else if seat.joined {
                let made = if index % 2 == 0 { &first } else { &second };
                seat.member.process(&self.group_id, &made.message)?;
            }
        }
        for index in [one, other] {
            self.say(index, b"in my branch")?;
            self.commit(index, vec![Change::Update], &[])?;
        }
        self.talk()
    }
}
