//! Validators that rebuild a source tree with `openrelay validator run`.

use std::path::{Path, PathBuf};

use alloy_primitives::B256;
use anyhow::{Context as _, Result};
use openrelay_ledger::chain::voted::{CLIENT_PACKAGE, RELAY_IMAGE};

use super::world::{What, World};
use crate::world::tiny::Tiny;

/// A tree that validators rebuild themselves.
#[derive(Clone)]
pub(crate) struct Rebuilding<'a> {
    pub(crate) tiny: &'a Tiny,
    pub(crate) tree: PathBuf,
    /// The client's program that is rebuilt instead of a relay's image.
    pub(crate) client: Option<PathBuf>,
}

impl<'a> Rebuilding<'a> {
    /// The rebuilding of a tree's relay image.
    pub(crate) fn of(tiny: &'a Tiny) -> Self {
        Self { tiny, tree: tiny.tree.clone(), client: None }
    }
}

impl Rebuilding<'_> {
    /// Returns a proposal of this tree, with the image that it builds.
    pub(crate) fn good(&self, world: &World, version: u64) -> Result<What> {
        self.what(world, &self.tiny.programs, version)
    }

    /// Returns a proposal of this tree with another image, in which one byte of a program differs. No build of the
    /// tree gives that image.
    pub(crate) fn planted(&self, world: &World, version: u64) -> Result<What> {
        let planted = [self.tiny.programs[0].clone(), self.tree.with_file_name("planted")];
        std::fs::write(&planted[1], [&std::fs::read(&self.tiny.programs[1])?[..], b"!"].concat())?;
        self.what(world, &planted, version)
    }

    pub(crate) fn what(&self, world: &World, programs: &[PathBuf; 2], version: u64) -> Result<What> {
        let text = |path: &Path| path.display().to_string();
        let tree = text(&self.tree);
        let (source, inputs) = world.hashes_of(&self.tree)?;
        let (kept, out) = (text(&self.tiny.inputs), text(&self.tree.with_file_name("built")));
        let version = version.to_string();
        let (kind, word) = if self.client.is_some() { (CLIENT_PACKAGE, "client") } else { (RELAY_IMAGE, "relay") };
        let programs: Vec<String> =
            self.client.as_ref().map_or(&programs[..], std::slice::from_ref).iter().map(|path| text(path)).collect();
        let mut arguments = vec!["image", "build", "--source", &tree, "--inputs", &kept, "--out", &out];
        arguments.extend(["--version", &version, "--kind", word, "--json", "--programs"]);
        arguments.extend(programs.iter().map(String::as_str));
        let said = world.local.says(&arguments, 0, "image-build/1")?;
        let line = said.lines().find(|line| line.starts_with('{')).context("image build printed no JSON")?;
        let built: serde_json::Value = serde_json::from_str(line)?;
        let hash =
            |name: &str| -> Result<B256> { Ok(built[name].as_str().context("image build reported no hash")?.parse()?) };
        Ok(What { kind, source, inputs, image: hash("image")?, measurements: hash("manifest")? })
    }

    /// Returns the arguments of `openrelay validator run` for this validator. With `once` it makes one pass and ends.
    pub(crate) fn arguments(&self, world: &World, id: u64, once: bool) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let publish = text(&world.local.dir.join(format!("published-{id}")));
        let (tree, kept) = (text(&self.tree), text(&self.tiny.inputs));
        let [init, relay] = [text(&self.tiny.programs[0]), text(&self.tiny.programs[1])];
        let mut all = vec!["run", "--no-checks", "--source", &tree, "--publish", &publish, "--inputs", &kept];
        all.extend(["--programs", &init, &relay]);
        let client = self.client.as_deref().map(text);
        all.extend(client.iter().flat_map(|client| ["--client-program", client]));
        all.extend(once.then_some("--once"));
        world.arguments(id, &all)
    }

    /// Makes one pass in its own process, which must print this word.
    pub(crate) fn run(&self, world: &World, id: u64, word: &str) -> Result<()> {
        let all = self.arguments(world, id, true);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        world.local.says(&all, 0, word).map(drop)
    }
}
