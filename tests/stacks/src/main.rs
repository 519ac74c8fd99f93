//! Members of MLS groups that use released libraries, for the tests of mimids. See README.md.

mod member;
mod mls_rs_member;
mod openmls_member;
mod openmls_provider;
mod record;
mod serve;

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve::run(),
        ["record", directory] => record::run(directory.as_ref()),
        _ => Err("usage: stacks serve | stacks record DIRECTORY".into()),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stacks: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
