//! Reading and writing the maps.

use std::{
    collections::{self, BTreeMap, BTreeSet},
    hash::Hash,
    net::IpAddr,
    os::fd::AsFd as _,
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapError, PerCpuArray, lpm_trie},
};
use portfwd_common::{
    ABI, Addr, Bank, ClaimKey, Forwarder, FromKey, RuleCounters, RuleEntry, TargetEntry, Verdict,
    names,
};

use super::{Dataplane, machine, ports};
use crate::{Error, homes, hops, plan::Plan};

impl Dataplane {
    /// Fills the bank that is not in use with the plan's rules and switches to
    /// it with one store.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when a map is full or refuses.
    pub fn install(&mut self, plan: &Plan) -> Result<(), Error> {
        let forwarder: Array<_, Forwarder> = self.map(names::FORWARDER)?;
        let before = forwarder.get(&0, 0).map_err(failed(names::FORWARDER))?;
        let bank = 1 - (before.bank & 1);
        self.write_rules(plan)?;
        self.write_claims(plan, bank)?;
        match self.raw(names::PORTS)? {
            Map::Array(map) => ports::write(map.fd().as_fd(), bank, &plan.ports)?,
            _ => return Err(Error::machine("the port table is no array")),
        }
        let mut forwarder: Array<_, Forwarder> = self.map_mut(names::FORWARDER)?;
        forwarder
            .set(
                0,
                Forwarder {
                    abi: ABI,
                    bank,
                    epoch: before.epoch % 255 + 1,
                },
                0,
            )
            .map_err(failed(names::FORWARDER))
    }

    fn write_rules(&mut self, plan: &Plan) -> Result<(), Error> {
        let mut rules: Array<_, RuleEntry> = self.map_mut(names::RULES)?;
        for (slot, rule) in (0..).zip(&plan.rules) {
            rules.set(slot, rule, 0).map_err(failed(names::RULES))?;
        }
        self.set_targets(&plan.targets)?;
        let mut remotes: HashMap<_, Addr, u32> = self.map_mut(names::REMOTES)?;
        for addr in &plan.remotes {
            remotes.insert(addr, 1, 0).map_err(failed(names::REMOTES))?;
        }
        let mut from: LpmTrie<_, FromKey, u32> = self.map_mut(names::FROM)?;
        for (bits, key) in &plan.from {
            from.insert(&lpm_trie::Key::new(*bits, *key), 1, 0)
                .map_err(failed(names::FROM))?;
        }
        Ok(())
    }

    /// Writes the targets of all rules, each in its place: flows find theirs
    /// by it.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map refuses.
    pub fn set_targets(&mut self, targets: &[TargetEntry]) -> Result<(), Error> {
        let mut map: Array<_, TargetEntry> = self.map_mut(names::TARGETS)?;
        (0..).zip(targets).try_for_each(|(index, target)| {
            map.set(index, target, 0).map_err(failed(names::TARGETS))
        })
    }

    fn write_claims(&mut self, plan: &Plan, bank: Bank) -> Result<(), Error> {
        let mut claims: HashMap<_, ClaimKey, u32> = self.map_mut(names::CLAIMS)?;
        for (key, slot) in &plan.claims {
            let key = ClaimKey {
                bank: bank as u8,
                ..*key
            };
            claims.insert(key, slot, 0).map_err(failed(names::CLAIMS))?;
        }
        Ok(())
    }

    /// Makes LOCALS hold exactly these addresses of this host.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map is full.
    pub fn set_locals(&mut self, addresses: &[(IpAddr, u32)]) -> Result<(), Error> {
        let wanted: BTreeMap<Addr, u32> = addresses
            .iter()
            .map(|(addr, ifindex)| (Addr::from(*addr), *ifindex))
            .collect();
        let mut locals: HashMap<_, Addr, u32> = self.map_mut(names::LOCALS)?;
        let present: BTreeSet<Addr> = locals
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed(names::LOCALS))?;
        for gone in present.iter().filter(|addr| !wanted.contains_key(addr)) {
            locals.remove(gone).map_err(failed(names::LOCALS))?;
        }
        for (addr, ifindex) in &wanted {
            locals
                .insert(addr, ifindex, 0)
                .map_err(failed(names::LOCALS))?;
        }
        Ok(())
    }

    /// Makes NEXT_HOPS hold exactly these.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map is full.
    pub(crate) fn set_next_hops(&mut self, wanted: &hops::Entries) -> Result<(), Error> {
        self.set_trie(names::NEXT_HOPS, wanted)
    }

    /// Makes HOMES hold exactly these.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map is full.
    pub(crate) fn set_homes(&mut self, wanted: &homes::Entries) -> Result<(), Error> {
        self.set_trie(names::HOMES, wanted)
    }

    fn set_trie<K, V>(
        &mut self,
        name: &str,
        wanted: &collections::HashMap<(u32, K), V>,
    ) -> Result<(), Error>
    where
        K: Pod + Eq + Hash,
        V: Pod + PartialEq,
    {
        let mut map: LpmTrie<_, K, V> = self.map_mut(name)?;
        let present: collections::HashMap<(u32, K), V> = map
            .iter()
            .map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value)))
            .collect::<Result<_, _>>()
            .map_err(failed(name))?;
        for (bits, key) in present.keys().filter(|key| !wanted.contains_key(key)) {
            map.remove(&lpm_trie::Key::new(*bits, *key))
                .map_err(failed(name))?;
        }
        for (place, value) in wanted {
            if present.get(place) != Some(value) {
                let (bits, key) = *place;
                map.insert(&lpm_trie::Key::new(bits, key), value, 0)
                    .map_err(failed(name))?;
            }
        }
        Ok(())
    }

    /// From now on nothing but flows of rules crosses a device to or from
    /// 127.0.0.0/8.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map is full.
    pub fn guard(&mut self, ifindex: u32) -> Result<(), Error> {
        let mut guarded: HashMap<_, u32, u32> = self.map_mut(names::GUARDED)?;
        guarded
            .insert(ifindex, 1, 0)
            .map_err(failed(names::GUARDED))
    }

    /// Counters of the rules in the first `rules` slots, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map cannot be read.
    pub fn rule_counters(&self, rules: u32) -> Result<Vec<RuleCounters>, Error> {
        let map: PerCpuArray<_, RuleCounters> = self.map(names::RULE_COUNTERS)?;
        (0..rules)
            .map(|slot| {
                let cpus = map.get(&slot, 0).map_err(failed(names::RULE_COUNTERS))?;
                Ok(cpus
                    .iter()
                    .fold(RuleCounters::default(), |sum, cpu| sum + *cpu))
            })
            .collect()
    }

    /// Packets and calls by verdict, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map cannot be read.
    pub fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, Error> {
        Verdict::ALL
            .iter()
            .map(|verdict| {
                let packets = self.count(names::VERDICTS, *verdict)?;
                let calls = self.count(names::HOOK_VERDICTS, *verdict)?;
                Ok((*verdict, packets + calls))
            })
            .collect()
    }

    fn count(&self, name: &str, verdict: Verdict) -> Result<u64, Error> {
        let map: PerCpuArray<_, u64> = self.map(name)?;
        let cpus = map.get(&(verdict as u32), 0).map_err(failed(name))?;
        Ok(cpus.iter().sum())
    }

    fn raw(&self, name: &str) -> Result<&Map, Error> {
        self.ebpf.map(name).ok_or_else(|| missing(name))
    }

    fn map<'a, M>(&'a self, name: &str) -> Result<M, Error>
    where
        M: TryFrom<&'a Map, Error = MapError>,
    {
        M::try_from(self.raw(name)?).map_err(failed(name))
    }

    pub(super) fn map_mut<'a, M>(&'a mut self, name: &str) -> Result<M, Error>
    where
        M: TryFrom<&'a mut Map, Error = MapError>,
    {
        let map = self.ebpf.map_mut(name).ok_or_else(|| missing(name))?;
        M::try_from(map).map_err(failed(name))
    }
}

fn missing(name: &str) -> Error {
    Error::machine(format!("the BPF object holds no map {name}"))
}

/// An error of one map.
fn failed(name: &str) -> impl Fn(MapError) -> Error + '_ {
    move |error| machine(format!("map {name}"), error)
}
