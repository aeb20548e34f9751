//! What every program of the object takes, for those who watch its growth.

use std::{collections::HashMap, path::Path};

use aya::programs::{self, ProgramError, ProgramInfo};
use aya_obj::Object;

use super::{Features, Settings, machine, object};
use crate::Error;

/// Bytes of an instruction.
const INSTRUCTION: u32 = 8;

/// What a loaded program takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its name in the object.
    pub name: String,
    /// Instructions that the kernel is given, those of the functions that it
    /// calls included: the compiler's, whatever the kernel.
    pub instructions: usize,
    /// Instructions that the verifier walked; unknown below 5.16.
    pub verified: Option<u32>,
    /// Instructions that were left without what this kernel never reaches, and
    /// with what it does in line; unknown where the kernel hides them.
    pub translated: Option<u32>,
    /// Bytes of machine code; none where the kernel interprets.
    pub jitted: Option<u32>,
}

/// Loads every program of the object, attaches none, and lists them by name. The
/// maps are pinned under `pins`, and are the caller's to remove.
///
/// # Errors
///
/// [`Error::Machine`] when the kernel refuses a map or a program, or when a
/// program is of a kind that is not loaded here.
pub fn programs(
    settings: &Settings,
    features: Features,
    pins: &Path,
) -> Result<Vec<Program>, Error> {
    let instructions = instructions()?;
    let mut ebpf = object::load(settings, features, pins)?;
    let mut programs = ebpf
        .programs_mut()
        .map(|(name, program)| {
            let info = loaded(program)
                .map_err(|error| machine(format!("cannot load program {name}"), error))?;
            Ok(Program {
                name: name.to_owned(),
                instructions: instructions.get(name).copied().unwrap_or_default(),
                verified: info.verified_instruction_count(),
                translated: info.size_translated().map(|bytes| bytes / INSTRUCTION),
                jitted: Some(info.size_jitted()).filter(|bytes| *bytes != 0),
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// Instructions of each program as the compiler made them.
fn instructions() -> Result<HashMap<String, usize>, Error> {
    let unread = |error: &dyn std::error::Error| {
        Error::machine(format!("the BPF object cannot be read: {error}"))
    };
    let mut object = Object::parse(object::OBJECT).map_err(|error| unread(&error))?;
    let text = object.functions.keys().map(|(section, _)| *section);
    let text = text.collect();
    object
        .relocate_calls(&text)
        .map_err(|error| unread(&error))?;
    let length = |program: &aya_obj::Program| {
        let function = object.functions.get(&program.function_key());
        function.map_or(0, |function| function.instructions.len())
    };
    let programs = object.programs.iter();
    Ok(programs
        .map(|(name, program)| (name.clone(), length(program)))
        .collect())
}

fn loaded(program: &mut programs::Program) -> Result<ProgramInfo, ProgramError> {
    if program.fd().is_err() {
        match program {
            programs::Program::SchedClassifier(program) => program.load(),
            programs::Program::Xdp(program) => program.load(),
            programs::Program::CgroupSockAddr(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }?;
    }
    program.info()
}
