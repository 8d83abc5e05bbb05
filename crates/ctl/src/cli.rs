//! The grammar of the command line: what may be typed, and nothing of what it does.

use std::path::PathBuf;

use clap::{Parser, Subcommand, builder::FalseyValueParser};

use crate::{
    commands::{
        admin, agent, agents, audit, cancel, completions, dev, exec, explain, list, logs, queue, recommend, result,
        retry, run, schema, show, stats, status, submit, top, validate, version, wait,
    },
    output::{Format, style::When},
};

/// Muster runs tasks on machines: this hands them in, follows them and says why they wait.
///
/// Work is named by its number (17), a task of it (17.0, 17.extract, `17.scan[3]`) or a job's unique
/// name (census, census.merge).
#[derive(Debug, Parser)]
#[command(name = "ctl", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 the work failed, 2 bad usage or input, 3 not found, 4 no controller, \
                        5 refused, 6 cancelled, 7 wait timed out, 8 fault, 9 skipped, 130 interrupted.")]
pub(crate) struct Cli {
    /// How the answer is written; all but `table` are stable
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,

    /// The controller's address, like http://127.0.0.1:7717
    ///
    /// Without it: the variable MUSTER_CONTROLLER, then `controller` in ~/.config/muster/ctl.toml, then
    /// port 7717 of this machine (`run` starts a system of its own instead).
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) controller: Option<String>,

    /// The certificate of the CA that signed the controller's, for https:// addresses
    ///
    /// Without it: the variable MUSTER_CA, then `ca` in ~/.config/muster/ctl.toml.
    #[arg(long, global = true, value_name = "FILE", env = "MUSTER_CA", hide_env = true)]
    pub(crate) ca: Option<PathBuf>,

    /// Speak plain text to other machines, too; also MUSTER_INSECURE=1 and `insecure` in the file
    #[arg(long, global = true, env = "MUSTER_INSECURE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) insecure: bool,

    /// A file with an access token, for controllers that ask for one
    ///
    /// Without it: the variable MUSTER_TOKEN, then `token_file` or `token` in ctl.toml.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// When to use colours; NO_COLOR is honoured
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: When,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One per subcommand; each has its file in `commands`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a job to its end, here if no controller is named
    Run(run::Args),
    /// Keep a whole Muster running in this process
    Dev(dev::Args),
    /// Hand in a job and print its number
    Submit(submit::Args),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Show a job or tasks of it
    Show(show::Args),
    /// Show what tasks wrote
    Logs(logs::Args),
    /// Print the result that a task wrote
    Result(result::Args),
    /// Run a command beside a task that runs
    Exec(exec::Args),
    /// End work that is not over
    Cancel(cancel::Args),
    /// Run work again that is over
    Retry(retry::Args),
    /// Wait until jobs are over
    Wait(wait::Args),
    /// Say why work waits and what would unblock it
    Explain(explain::Args),
    /// Say what the tasks of a job should ask for, from what they took
    Recommend(recommend::Args),
    /// Count tasks and measure their times
    Stats(stats::Args),
    /// Show the whole installation: controllers, store, agents, queues
    Status(status::Args),
    /// Watch the cluster on a live screen
    Top(top::Args),
    /// List the machines that run tasks
    Agents(agents::Args),
    /// Cordon, drain, resume, limit or show machines
    Agent(agent::Args),
    /// List queues or change one
    Queue(queue::Args),
    /// Show who did what and who was refused
    Audit(audit::Args),
    /// Run the installation: copy, restore and move it, let agents join and send them away
    Admin(admin::Args),
    /// Check job files without handing them in
    Validate(validate::Args),
    /// Print the JSON Schema of job files
    Schema(schema::Args),
    /// Print a script that completes ctl in a shell
    Completions(completions::Args),
    /// Print the version of ctl and of the controller
    Version(version::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_and_every_flag_stands_in_the_reference() {
        let text = include_str!("../../../docs/cli.md");
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            check(text, sub, &format!("ctl {}", sub.get_name()));
        }
    }

    fn check(text: &str, command: &clap::Command, name: &str) {
        let head = format!("## `{name}");
        assert!(text.contains(&head), "docs/cli.md has no section {head}");
        let start = text.find(&head).unwrap();
        let section = &text[start..];
        let end = section[3..].find("\n## ").map_or(section.len(), |end| end + 3);
        for arg in command.get_arguments().filter(|arg| !arg.is_global_set() && !arg.is_hide_set()) {
            if let Some(long) = arg.get_long().filter(|long| *long != "help") {
                assert!(section[..end].contains(&format!("--{long}")), "{name} --{long} is not in its section");
            }
        }
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            check(text, sub, &format!("{name} {}", sub.get_name()));
        }
    }

    #[test]
    fn what_people_type_is_understood() {
        let good = [
            "ctl run job.toml",
            "ctl run -- sh -c true",
            "ctl run --data d --cpus 2 --env A=b -- true",
            "ctl submit --key k --wait job.toml",
            "ctl submit -- true",
            "ctl list --state failed --label a=b --since 2h -o json",
            "ctl -o yaml ls --all",
            "ctl list --state pending,completed",
            "ctl show 17.scan[3]",
            "ctl logs -f 17 --stream stderr --tail 5",
            "ctl logs 17 --grep ^error -i --since 1h --until 2026-11-21",
            "ctl logs --search needle --label a=b --state failed --limit 5",
            "ctl logs --search needle 17.scan",
            "ctl cancel 17 --reason because --teardown-too",
            "ctl retry census --failed",
            "ctl wait 1 2 3 --timeout 5m",
            "ctl recommend census -o json",
            "ctl stats --slowest 3",
            "ctl queue set gpu --max-running 3",
            "ctl queue set gpu --max-running none --pause",
            "ctl admin token create --name ops --role operator --queue a --queue b --ttl 30d",
            "ctl admin token revoke ops --token-file f",
            "ctl audit --since 2h --actor ops --action token --refused -n 5 -o jsonl",
            "ctl audit --verify",
            "ctl completions bash",
            "ctl agents --wide --label zone=a",
            "ctl agent show n1",
            "ctl top --interval 500ms --filter gpu",
            "ctl agent drain n1 n2 --deadline 10m --reason kernel --wait --timeout 20m",
            "ctl agent cordon --label zone=a --label !gpu",
            "ctl agent resume n1 --label zone=a",
            "ctl agent set n1 --cpus 0.5 --memory 4GiB --gpus 0",
            "ctl agent set n1 --all",
            "ctl admin backup nightly.muster --with-logs",
            "ctl admin backup -",
            "ctl admin restore nightly.muster --data /srv/muster --force",
            "ctl admin restore nightly.muster --store etcd://a,b",
            "ctl admin promote --to etcd://a",
        ];
        for line in good {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let bad = [
            "ctl",
            "ctl run",
            "ctl run job.toml -- true",
            "ctl run job.toml --cpus 2",
            "ctl run --data d --controller x job.toml",
            "ctl list --state nonsense",
            "ctl list --since yesterdayish",
            "ctl wait",
            "ctl wait 1 --timeout never",
            "ctl queue set gpu",
            "ctl queue set gpu --pause --resume",
            "ctl logs 1 --stream both",
            "ctl admin",
            "ctl audit --verify --refused",
            "ctl audit --verify --expect 17",
            "ctl admin token create --name ops",
            "ctl admin token create --name ops --role king",
            "ctl completions tcsh",
            "ctl agent",
            "ctl agent drain",
            "ctl agent drain n1 --timeout 3s",
            "ctl agent set n1",
            "ctl agent set n1 --all --cpus 2",
            "ctl agent set n1 --cpus -1",
            "ctl show 1 -o xml",
            "ctl admin",
            "ctl admin restore nightly.muster",
            "ctl admin promote",
        ];
        for line in bad {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
